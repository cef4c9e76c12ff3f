//! The memory of the machine that a process runs on.
//!
//! Invariant: a control group's limit counts, because who exceeds it is killed.

use std::fs::read_to_string;

/// Bytes of memory that this process may use: physical, or less where its control group says so;
/// `None` where neither can be read.
#[must_use]
pub fn memory() -> Option<u64> {
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limits: Vec<String> = limits.iter().filter_map(|path| read_to_string(path).ok()).collect();
    usable(&read_to_string("/proc/meminfo").ok()?, &limits)
}

/// From the text of `/proc/meminfo` and of the files of the limits (`max`: no limit).
fn usable(meminfo: &str, limits: &[String]) -> Option<u64> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let physical = total.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)?;
    Some(limits.iter().filter_map(|limit| limit.trim().parse().ok()).fold(physical, u64::min))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_limit_counts() {
        let meminfo = "MemFree: 1 kB\nMemTotal:       16384 kB\n";
        for (limits, bytes) in [
            (&[][..], 16 << 20),
            (&["max\n"], 16 << 20),
            (&["9223372036854771712\n"], 16 << 20),
            (&["2097152\n"], 2 << 20),
            (&["max\n", "1048576\n"], 1 << 20),
        ] {
            let limits: Vec<String> = limits.iter().map(|&limit| limit.to_owned()).collect();
            assert_eq!(usable(meminfo, &limits), Some(bytes), "{limits:?}");
        }
        assert_eq!(usable("", &[]), None);
        assert!(memory().unwrap() > 1 << 28);
    }
}
