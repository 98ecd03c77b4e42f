//! Asks a vault as its operator: by its socket while it is served, else in this process.
