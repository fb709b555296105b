//! What this package's programs share: where models lie, and tables.

pub mod models;
mod table;

pub use table::Table;
