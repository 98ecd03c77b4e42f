//! One mount's life as a process: fork, signals, readiness, logging, control socket, unmount.
