//! Which slots are free. Knows slots, not what is in them.
