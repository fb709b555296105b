//! From a prompt to a pack that a device accepts: the library, the server over loopback, and the command line, with models
//! of a few KB.

mod cli;
mod publish;
mod refusals;
mod serve;
mod server;
mod tiny;
