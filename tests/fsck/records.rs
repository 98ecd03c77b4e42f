//! Records that authenticate and contradict each other.
