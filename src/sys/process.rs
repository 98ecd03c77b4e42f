//! Forking, signals and limits of the process.
