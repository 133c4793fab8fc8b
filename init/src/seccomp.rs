//! io_uring cannot be saved in a checkpoint, so its system calls fail with ENOSYS, and programs use something else.
//!
//! The filter is added to the engine's own, which stays in force. It is installed only under `no_new_privs`: otherwise
//! the kernel requires CAP_SYS_ADMIN for it, and set-user-id programs would run filtered.

use std::io;

use crate::sys::{self, Instruction};

/// Whether programs of the pod may use io_uring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoUring {
    Allowed,
    Refused,
}

/// `io_uring_setup`, `_enter` and `_register`: the same numbers on every architecture, 32-bit ones too.
const FIRST: u32 = 425;
const LAST: u32 = 427;
/// The bit that marks x86's x32 calls.
const X32: u32 = 0x4000_0000;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_AT_LEAST: u16 = 0x35;
const JUMP_GREATER: u16 = 0x25;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
/// "Function not implemented".
const FAIL_ENOSYS: u32 = 0x0005_0000 | 38;

const FILTER: [Instruction; 6] = [
    // The number of the call is the first field of `struct seccomp_data`.
    instruction(LOAD, 0, 0, 0),
    instruction(AND, 0, 0, !X32),
    instruction(JUMP_AT_LEAST, 0, 2, FIRST),
    instruction(JUMP_GREATER, 1, 0, LAST),
    instruction(RETURN, 0, 0, FAIL_ENOSYS),
    instruction(RETURN, 0, 0, ALLOW),
];

const fn instruction(code: u16, if_true: u8, if_false: u8, value: u32) -> Instruction {
    Instruction { code, if_true, if_false, value }
}

/// Installs the filter for this process and its children. Does nothing without `no_new_privs`.
pub fn refuse_io_uring() -> io::Result<()> {
    if sys::has_no_new_privileges() { sys::filter_calls(&FILTER) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter on a system call, as the kernel would.
    fn evaluate(call: u32) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let step = FILTER[at];
            at += 1;
            match step.code {
                LOAD => value = call,
                AND => value &= step.value,
                JUMP_AT_LEAST => at += usize::from(if value >= step.value { step.if_true } else { step.if_false }),
                JUMP_GREATER => at += usize::from(if value > step.value { step.if_true } else { step.if_false }),
                RETURN => return step.value,
                code => panic!("{code:#x} is not an instruction of the filter"),
            }
        }
    }

    #[test]
    fn only_io_uring_fails_with_enosys() {
        for call in [425, 426, 427, 425 | X32] {
            assert_eq!(evaluate(call), FAIL_ENOSYS, "{call}");
        }
        for call in [0, 1, 424, 428, 435, 1000, u32::MAX] {
            assert_eq!(evaluate(call), ALLOW, "{call}");
        }
    }
}
