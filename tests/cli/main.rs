//! The command line from outside: the program against a server whose responses the tests set.

mod actions;
mod checkpoint;
mod doctor;
mod exec;
mod fake;
mod general;
mod gpu;
mod login;
#[path = "../common/need.rs"]
#[allow(dead_code, reason = "the command line needs little of the machine")]
mod need;
mod original;
mod pods;
mod request;
mod shell;
mod ssh;
mod terminal;
mod usage;
mod views;
