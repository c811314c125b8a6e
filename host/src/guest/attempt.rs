//! One run of a module on one fresh instance: sets it up, calls it, says how it ended. Never decides what happens to
//! the other commands: that is `apply.rs`.

use wasmtime::{Engine, Store};

use super::apply::Context;
use super::component::ComponentEntrance;
use super::core_module::CoreEntrance;
use super::fault::{End, LocalFault, judge};
use super::host::{self, Backing, Meter, Room};
use super::limits::Limits;
use super::reply;
use crate::outcome::{Failure, ModuleReplies};

/// One of the two functions that take a batch, ready to be instantiated.
pub(super) struct Entrance {
    pub way: Way,
    /// In queries the module need not call `begin`.
    pub begin_required: bool,
}

/// How the module is run.
pub(super) enum Way {
    Core(CoreEntrance),
    Component(ComponentEntrance),
}

/// How a run ended.
pub(super) enum Verdict {
    /// One reply for each position.
    Done(ModuleReplies),
    /// The command at this place of the run is to blame.
    Culprit(usize, Failure),
    /// From this place of the run on the batch had no fuel.
    BudgetFrom(usize),
    /// Nobody can be told to be the one to blame.
    Unclear(Failure),
    /// The deadline came while the command at this place was run. Only in queries.
    Deadline(usize),
}

/// What a run leaves behind.
pub(super) struct Attempt {
    pub verdict: Verdict,
    pub backing: Backing,
    /// Fuel that the command to blame burnt, out of the batch's.
    pub burnt: u64,
    /// Of the batch's fuel, what is left.
    pub budget: u64,
}

/// What stays the same between the runs of a batch.
pub(super) struct Job<'a> {
    pub context: &'a Context,
    pub batch: &'a [u8],
    /// How many commands the batch has.
    pub count: usize,
    pub limits: Limits,
    /// As [`Room::is_light`].
    pub is_light: bool,
}

impl Entrance {
    /// Runs the positions in `run`, which is not empty. `ticks`: epochs until the deadline, in queries.
    // The guest's stack begins at this frame, and light and whole runs must have the same.
    #[inline(never)]
    pub(super) fn attempt(
        &self,
        job: &Job<'_>,
        run: &[u32],
        backing: Backing,
        budget: u64,
        ticks: Option<u64>,
    ) -> Result<Attempt, LocalFault> {
        let mut room = Room::new(backing, job.limits, run.to_vec(), budget);
        room.is_light = job.is_light;
        let mut store = Store::new(self.way.engine(), room);
        if let Some(ticks) = ticks {
            store.set_epoch_deadline(ticks);
        }
        // "Empty: all of them" spares the copy.
        let listed = if run.len() == job.count { &[] } else { run };
        let result = host::prepare(&mut store).and_then(|()| self.way.call(&mut store, job, listed));
        let left = store.get_fuel().map_err(|error| LocalFault(format!("{error:#}")))?;
        let verdict = match result {
            Ok(archive) => self.verdict(archive, &store.data().meter, &job.limits),
            Err(error) => blame(judge(&error)?, &store.data().meter, &job.limits),
        };
        let Room { backing, mut meter, .. } = store.into_data();
        let before = meter.budget;
        meter.settle(left);
        Ok(Attempt { verdict, backing, burnt: before - meter.budget, budget: meter.budget })
    }

    fn verdict(&self, archive: Vec<u8>, meter: &Meter, limits: &Limits) -> Verdict {
        let silent = meter.begun == 0 && !self.begin_required;
        if meter.begun != meter.run.len() && !silent {
            return Verdict::Unclear(Failure::InvalidReply("begin was not called for each command".into()));
        }
        match reply::check(archive, meter.run.len(), limits) {
            Err(failure) => Verdict::Unclear(failure),
            Ok(replies) => match reply::first_invalid(&replies) {
                Some((at, failure)) => Verdict::Culprit(at, failure),
                None => Verdict::Done(replies),
            },
        }
    }
}

impl Way {
    pub(super) fn engine(&self) -> &Engine {
        match self {
            Way::Core(entrance) => entrance.engine(),
            Way::Component(entrance) => entrance.engine(),
        }
    }

    fn call(&self, store: &mut Store<Room>, job: &Job<'_>, run: &[u32]) -> wasmtime::Result<Vec<u8>> {
        match self {
            Way::Core(entrance) => entrance.call(store, job, run),
            Way::Component(entrance) => entrance.call(store, job, run),
        }
    }
}

fn blame(end: End, meter: &Meter, limits: &Limits) -> Verdict {
    let current = meter.begun.checked_sub(1);
    match (end, current) {
        (End::Budget, _) => Verdict::BudgetFrom(meter.begun),
        (End::Nobody(failure), _) => Verdict::Unclear(failure),
        (End::Deadline, at) => Verdict::Deadline(at.unwrap_or(0)),
        (End::Failure(Failure::OutOfFuel), Some(at)) if meter.is_tight(limits) => Verdict::BudgetFrom(at),
        // The memory is that of all commands before it, too.
        (End::Failure(Failure::OutOfMemory), Some(at)) if at > 0 => Verdict::Unclear(Failure::OutOfMemory),
        (End::Failure(failure), Some(at)) => Verdict::Culprit(at, failure),
        (End::Failure(failure), None) => Verdict::Unclear(failure),
    }
}
