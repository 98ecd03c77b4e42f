//! Translation between fuser and `fs`. The only module that names `fuser`.
