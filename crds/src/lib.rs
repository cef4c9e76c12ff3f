//! The API of Longstrap: types, rules, defaults, reasons, exit codes and the task file of a pod. No client, no I/O.
