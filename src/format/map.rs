//! Page maps.
