//! What every pod process has: task file, termination message, exit codes, progress, signals.
