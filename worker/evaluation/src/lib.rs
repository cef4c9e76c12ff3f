//! Loss by position, recall by distance, needles, and the report.
