//! NVML's return codes, with its numbers and messages.

use std::ffi::CStr;

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        /// `nvmlReturn_t`. In the state file by NVML's name without `NVML_ERROR_`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "SCREAMING_SNAKE_CASE")]
        pub enum Code {
            $($name = $number,)*
        }

        /// The message for any number.
        pub fn text(number: u32) -> &'static CStr {
            match number {
                $($number => $text,)*
                _ => c"Unknown Error",
            }
        }
    };
}

codes! {
    Success = 0, c"Success";
    Uninitialized = 1, c"Uninitialized";
    InvalidArgument = 2, c"Invalid Argument";
    NotSupported = 3, c"Not Supported";
    NoPermission = 4, c"Insufficient Permissions";
    NotFound = 6, c"Not Found";
    InsufficientSize = 7, c"Insufficient Size";
    InsufficientPower = 8, c"Insufficient External Power";
    DriverNotLoaded = 9, c"Driver Not Loaded";
    Timeout = 10, c"Timeout";
    IrqIssue = 11, c"Interrupt Request Issue";
    LibraryNotFound = 12, c"NVML Shared Library Not Found";
    FunctionNotFound = 13, c"Function Not Found";
    CorruptedInforom = 14, c"Corrupted infoROM";
    GpuIsLost = 15, c"GPU is lost";
    ResetRequired = 16, c"GPU requires restart";
    OperatingSystem = 17, c"The operating system has blocked the request.";
    LibRmVersionMismatch = 18, c"RM has detected an NVML/RM version mismatch.";
    InUse = 19, c"In use by another client";
    Memory = 20, c"Insufficient Memory";
    NoData = 21, c"No data";
    ArgumentVersionMismatch = 25, c"Argument version mismatch";
    NotReady = 27, c"Not Ready";
    GpuNotFound = 28, c"No GPUs were found";
    Unknown = 999, c"Unknown Error";
}

impl From<Result<(), Code>> for Code {
    fn from(answer: Result<(), Code>) -> Self {
        answer.err().unwrap_or(Self::Success)
    }
}
