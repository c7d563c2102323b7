//! Running configurations and mutants.
