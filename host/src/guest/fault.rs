//! Tells a guest's own failure, which every replica sees, from a failure of this machine, which no reply may depend
//! on. Knows no batch. Used by `attempt.rs`.

use std::str::Utf8Error;

use wasmtime::Trap;

use crate::outcome::Failure;

/// Something went wrong on this machine and not in the module. Fatal to the node when it applies: a reply made of it
/// would differ between replicas.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a failure of this machine while running a module: {0}")]
pub struct LocalFault(pub(super) String);

impl LocalFault {
    /// For a fault that shows outside this room, as when a module that is active doesn't compile here.
    pub fn new(what: String) -> Self {
        LocalFault(what)
    }
}

/// Raised by our imports and limits, carried through wasmtime as an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stop {
    #[error("the module's memory limit was reached")]
    Memory,
    #[error("the batch's fuel is used up")]
    Budget,
    #[error("{0}")]
    Contract(String),
    #[error("begin was not called once for each position of run, in its order")]
    Begin,
    #[error("the operating system refused memory that is within the limit: {0}")]
    Refused(String),
}

/// What ended a run early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    Failure(Failure),
    /// The batch's fuel was used up at a `begin`.
    Budget,
    /// A call that belongs to no command.
    Nobody(Failure),
    /// Only in queries.
    Deadline,
}

/// What a guest can make wasmtime say when it hands over values that break the canonical ABI. These are plain errors
/// there, without a type; the texts are those of the pinned version, and tests provoke them.
const ABI_ERRORS: [&str; 15] = [
    "list pointer/length out of bounds of memory",
    "list pointer is not aligned",
    "size overflow copying a list",
    "string pointer/length out of bounds of memory",
    "string pointer not aligned to",
    "realloc return: result not aligned",
    "realloc return: beyond end of memory",
    "return pointer not aligned",
    "pointer out of bounds",
    "pointer not aligned",
    "pointer size overflow",
    "unexpected discriminant",
    "invalid option discriminant",
    "invalid expected discriminant",
    "too much data is being copied between the host and the guest",
];

/// Decides by the error alone, in the same way on every replica.
pub(super) fn judge(error: &wasmtime::Error) -> Result<End, LocalFault> {
    if let Some(stop) = error.downcast_ref::<Stop>() {
        return match stop {
            Stop::Memory => Ok(End::Failure(Failure::OutOfMemory)),
            Stop::Budget => Ok(End::Budget),
            Stop::Begin => Ok(End::Nobody(Failure::Trap(stop.to_string()))),
            Stop::Contract(what) => Ok(trapped(what)),
            Stop::Refused(_) => Err(LocalFault(stop.to_string())),
        };
    }
    if let Some(trap) = error.downcast_ref::<Trap>() {
        return judge_trap(*trap);
    }
    if error.downcast_ref::<Utf8Error>().is_some() {
        return Ok(trapped("a string is not UTF-8"));
    }
    let text = error.root_cause().to_string();
    if let Some(known) = ABI_ERRORS.iter().find(|known| text.starts_with(*known)) {
        return Ok(trapped(known));
    }
    Err(LocalFault(format!("{error:#}")))
}

fn trapped(what: &str) -> End {
    End::Failure(Failure::Trap(what.to_owned()))
}

/// The traps that a guest alone decides. The texts are ours: they are part of replies, and so of the digest.
fn judge_trap(trap: Trap) -> Result<End, LocalFault> {
    Ok(trapped(match trap {
        Trap::OutOfFuel => return Ok(End::Failure(Failure::OutOfFuel)),
        Trap::Interrupt => return Ok(End::Deadline),
        Trap::StackOverflow => "call stack exhausted",
        Trap::MemoryOutOfBounds => "out of bounds memory access",
        Trap::TableOutOfBounds => "out of bounds table access",
        Trap::IndirectCallToNull => "indirect call to null",
        Trap::BadSignature => "indirect call type mismatch",
        Trap::IntegerOverflow => "integer overflow",
        Trap::IntegerDivisionByZero => "integer divide by zero",
        Trap::BadConversionToInteger => "invalid conversion to integer",
        Trap::UnreachableCodeReached => "unreachable executed",
        Trap::NullReference => "null reference",
        Trap::ArrayOutOfBounds => "out of bounds array access",
        Trap::CastFailure => "cast failure",
        Trap::CannotEnterComponent => "cannot enter component instance",
        Trap::CannotLeaveComponent => "cannot leave component instance",
        Trap::InvalidChar => "invalid char",
        Trap::StringOutOfBounds => "string out of bounds",
        Trap::ListOutOfBounds => "list out of bounds",
        Trap::InvalidDiscriminant => "invalid discriminant",
        Trap::UnalignedPointer => "unaligned pointer",
        other => return Err(LocalFault(format!("unlisted {other}"))),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_listed_is_local() {
        assert!(judge(&wasmtime::Error::msg("mmap failed")).is_err());
        assert!(judge(&wasmtime::Error::from(Trap::AllocationTooLarge)).is_err());
        assert!(judge(&wasmtime::Error::from(Stop::Refused("ENOMEM".into()))).is_err());
        assert_eq!(judge(&wasmtime::Error::from(Trap::OutOfFuel)), Ok(End::Failure(Failure::OutOfFuel)));
        assert_eq!(judge(&wasmtime::Error::from(Stop::Memory)), Ok(End::Failure(Failure::OutOfMemory)));
        assert_eq!(judge(&wasmtime::Error::from(Stop::Budget)), Ok(End::Budget));
    }
}
