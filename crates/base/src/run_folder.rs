//! The run folder: names, metrics, rollouts, event files, lock, checkpoints.
