//! Whose something is that is found on a host: marks of processes, in the names of what they make.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};

/// Digits of the numbers in marks: some names have to be short.
const BASE: u32 = 36;

/// The mark of this process: its number, and when it was started, in ticks since the machine was.
pub fn mine() -> String {
    let number = std::process::id();
    format!("{}.{}", digits(number.into()), digits(started(number).unwrap_or_default()))
}

/// Whether the process of a mark is gone; anything that is no mark is nobody's to say.
pub fn is_gone(mark: &str) -> bool {
    let Some((number, begun)) = mark.split_once('.') else { return false };
    let parsed = (u32::from_str_radix(number, BASE), u64::from_str_radix(begun, BASE));
    let (Ok(number), Ok(begun)) = parsed else { return false };
    started(number) != Some(begun)
}

fn digits(mut number: u64) -> String {
    let mut digits = Vec::new();
    loop {
        let digit = u32::try_from(number % u64::from(BASE)).unwrap_or_default();
        digits.extend(char::from_digit(digit, BASE));
        number /= u64::from(BASE);
        if number == 0 {
            return digits.iter().rev().collect();
        }
    }
}

/// A name that nothing else has: the mark of this process, and a number. As long as this lives, what is called so is in use.
#[derive(Debug)]
pub struct Own(u64);

/// Numbers in use.
static IN_USE: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

impl Own {
    /// Takes another one.
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        IN_USE.lock().unwrap_or_else(PoisonError::into_inner).insert(number);
        Self(number)
    }
}

impl fmt::Display for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", mine(), digits(self.0))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        IN_USE.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Whether what is called so, with more behind another dash or nothing, is of no use to anybody: its process is gone, or is this one
/// and has let go of it. Anything that is no such name is nobody's to say.
pub fn is_left_over(name: &str) -> bool {
    let mut parts = name.split('-');
    let (Some(mark), Some(number)) = (parts.next(), parts.next()) else { return false };
    let Ok(number) = u64::from_str_radix(number, BASE) else { return false };
    let is_let_go = || !IN_USE.lock().unwrap_or_else(PoisonError::into_inner).contains(&number);
    is_gone(mark) || mark == mine() && is_let_go()
}

/// When a process was started (proc_pid_stat(5), `starttime`).
fn started(number: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(PathBuf::from("/proc").join(number.to_string()).join("stat")).ok()?;
    // After its name, which is in brackets and may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_use_until_they_are_let_go() {
        let (one, other) = (Own::new(), Own::new());
        assert_ne!(one.to_string(), other.to_string());
        let names = [one.to_string(), format!("{one}-j")];
        assert!(names.iter().all(|name| !is_left_over(name)));
        drop(one);
        assert!(names.iter().all(|name| is_left_over(name)));
        assert!(!is_left_over(&other.to_string()));
        assert!(is_left_over("1z141z2.5-0-s"));
        assert!(["", "1z141z2.5", "1z141z2.5-?", "abababababab-3-1"].iter().all(|name| !is_left_over(name)));
    }

    #[test]
    fn only_what_is_known_to_be_gone_is() {
        assert!(!is_gone(&mine()));
        let (number, begun) = (std::process::id(), started(std::process::id()).unwrap());
        let other = format!("{}.{}", digits(number.into()), digits(begun + 1));
        assert!(is_gone(&other), "another one of the same number");
        assert!(is_gone("1z141z2.5"));
        assert!(["", "1", "?.1", "1.?", "1.2.3", "zzzzzzzz.1"].iter().all(|mark| !is_gone(mark)));
        // The longest there can be: numbers of processes have 22 bits.
        assert_eq!(
            [digits(0), digits(36), digits((1 << 22) - 1), digits(1 << 36)],
            ["0", "10", "2hwcf", "vkhsvls"]
        );
    }
}
