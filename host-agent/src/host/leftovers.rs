//! Servers that outlived the process that began them.

use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use tracing::info;

/// Ends every process that was told to listen on a socket. One that was not yet can't: its folder is to be removed next, and what
/// came in between is ended by asking again.
pub fn end_servers(socket: &Path) {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        let Ok(line) = std::fs::read(process.path().join("cmdline")) else { continue };
        let mut arguments = line.split(|&byte| byte == 0);
        if arguments.any(|argument| argument == socket.as_os_str().as_encoded_bytes())
            && kill_process(pid, Signal::KILL).is_ok()
        {
            info!(socket = %socket.display(), "ended what a killed process left running");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn only_who_listens_there_is_ended() {
        let waiting = |socket: &str| {
            let mut command = Command::new("sh");
            let process =
                command.args(["-c", "read line", "sh", socket]).stdin(Stdio::piped()).spawn().unwrap();
            // A process that has just begun has no arguments yet.
            while std::fs::read(format!("/proc/{}/cmdline", process.id())).unwrap().is_empty() {}
            process
        };
        let (mut ours, mut other) = (waiting("/nowhere/left/socket"), waiting("/nowhere/left/socket2"));
        end_servers(Path::new("/nowhere/left/socket"));
        assert_eq!(ours.wait().unwrap().signal(), Some(9));
        assert_eq!(other.try_wait().unwrap(), None);
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
