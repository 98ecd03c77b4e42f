//! What is particular to transit engines and AWS KMS, against real ones: every way in which they
//! refuse, every way to log in. What all providers have in common is the contract of `kek`.

mod aws;
mod peers;
mod transit;
