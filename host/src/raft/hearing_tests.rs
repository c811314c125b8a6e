//! Tests of `hearing.rs`: where to compare, and what a round knows. What follows is tested with real processes.

use super::*;

fn at(applied: u64) -> Report {
    Report { applied: Some(applied), ..Report::default() }
}

fn round(voters: &[NodeId], reports: &[(NodeId, Report)]) -> Round {
    let reports: BTreeMap<_, _> = reports.iter().cloned().collect();
    let members = voters.iter().copied().chain(reports.keys().copied()).collect::<BTreeSet<_>>().len();
    Round { voters: voters.iter().copied().collect(), reports, members }
}

#[test]
fn nodes_are_compared_where_a_majority_is_and_where_all_are() {
    let indices = |reports: &[(NodeId, Report)]| round(&[1, 2, 3], reports).indices();
    assert_eq!(indices(&[(1, at(90)), (2, at(80)), (3, at(70))]), [70, 80]);
    assert_eq!(indices(&[(1, at(90)), (2, at(90)), (3, at(90))]), [90]);
    assert_eq!(indices(&[(1, at(90)), (2, at(80))]), [80]);
    // One that was left far behind is not known there by the others any more.
    let far = 2 * BEHIND_MAX;
    assert_eq!(indices(&[(1, at(far)), (2, at(far)), (3, at(5))]), [far]);
    // Alone there is still the own state, for learners.
    assert_eq!(indices(&[(1, at(90)), (4, at(60))]), [60, 90]);
    assert_eq!(indices(&[]), [0; 0]);
}

#[test]
fn a_node_in_doubt_is_compared_where_it_stands_and_one_in_quarantine_nowhere() {
    let doubtful = Report { doubt: Some((What::Chain, 40)), ..at(50) };
    let quarantined = Report { quarantined: true, ..at(45) };
    let round = round(&[1, 2, 3, 4], &[(1, at(90)), (2, at(80)), (3, doubtful), (4, quarantined)]);
    assert_eq!(round.indices(), [50]);
    assert_eq!(round.unfit(), [3, 4].into());
    assert_eq!(round.sound_peers(1), [2]);
    assert_eq!(round.heard(|_| Some([1; 16])).iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn a_split_waits_for_a_voter_that_is_about_to_speak() {
    let said = |applied, digest: u8| Report { chain: vec![Some([digest; 16])], ..at(applied) };
    let silent = |applied| Report { chain: vec![None], ..at(applied) };
    let is_waited_for = |third: Option<Report>| {
        let mut reports = vec![(1, said(50, 1)), (2, said(50, 2))];
        reports.extend(third.map(|r| (3, r)));
        round(&[1, 2, 3], &reports).is_worth_a_wait(&[50])
    };
    assert!(is_waited_for(Some(silent(49))));
    assert!(!is_waited_for(None), "it can't be asked");
    assert!(!is_waited_for(Some(Report { held: true, ..silent(49) })), "it won't get there");
    assert!(!is_waited_for(Some(said(50, 1))), "it is decided");
    assert!(!is_waited_for(Some(silent(90))), "it has forgotten");
}

#[test]
fn a_round_is_complete_when_all_were_heard_at_the_same_place() {
    let voters = [1, 2, 3];
    assert!(round(&voters, &[(1, at(9)), (2, at(9)), (3, at(9))]).is_complete());
    assert!(!round(&voters, &[(1, at(9)), (2, at(9)), (3, at(8))]).is_complete());
    assert!(!round(&voters, &[(1, at(9)), (2, at(9))]).is_complete());
    assert!(round(&voters, &[(1, at(9)), (2, at(9)), (3, Report { quarantined: true, ..at(1) })]).is_complete());
    let digested = Report { contents: vec![(5, [1; 16])], ..at(9) };
    let reports = [(1, digested.clone()), (2, digested.clone()), (3, at(9))];
    assert!(!round(&voters, &reports).is_complete(), "node 3 hasn't digested the checkpoint yet");
    assert_eq!(
        round(&voters, &reports).compared(&[]),
        [Comparison { what: What::Content, index: 5, heard: vec![(1, [1; 16]), (2, [1; 16])] }]
    );
}
