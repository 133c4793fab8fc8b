//! Processes with a PID of the test's choosing: what the kernel does by chance when it reuses a PID, but on demand.

use std::{
    ffi::CString,
    fs::{self, File},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use nix::libc;

/// A `sleep` with the PID of an earlier process. It is killed when this is dropped.
pub struct Twin(pub u32);

impl Twin {
    /// Waits until the PID is free, and takes it. With the PID of a container's process it lives in that container's
    /// cgroup, so it belongs to the container as far as can be seen from outside.
    pub fn start(pid: u32, container: Option<&str>, seconds: u32) -> Self {
        let groups: Vec<File> = container.map(groups_of).unwrap_or_default();
        let program = CString::new("/bin/sleep").expect("no NUL");
        let seconds = CString::new(seconds.to_string()).expect("no NUL");
        let arguments = [program.as_ptr(), seconds.as_ptr(), std::ptr::null()];
        let wanted = [libc::pid_t::try_from(pid).expect("a PID")];
        let begun = Instant::now();
        loop {
            // SAFETY: like fork; the child only makes system calls, on values that were prepared before.
            let helper = unsafe { libc::fork() };
            if helper == 0 {
                // SAFETY: as above.
                unsafe { bear(&groups, &wanted, program.as_ptr(), &arguments) }
            }
            let mut status = 0;
            // SAFETY: our own child.
            unsafe { libc::waitpid(helper, &raw mut status, 0) };
            match libc::WEXITSTATUS(status) {
                0 => break,
                error => assert_eq!(error, libc::EEXIST, "{}", std::io::Error::from_raw_os_error(error)),
            }
            assert!(begun.elapsed() < Duration::from_secs(5), "{pid} does not become free");
            std::thread::sleep(Duration::from_millis(1));
        }
        // Wait until it runs its program.
        while fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.starts_with(b"/bin/sleep")) {
            assert!(begun.elapsed() < Duration::from_secs(5), "no /bin/sleep");
            std::thread::sleep(Duration::from_millis(1));
        }
        Self(pid)
    }
}

/// Enters the cgroups, creates a process with the wanted PID there, whose parent is ours, and exits with 0 or the
/// error. So the process is in its cgroups from its birth.
///
/// # Safety
/// For a child forked from a program with threads: it makes system calls only.
unsafe fn bear(
    groups: &[File],
    wanted: &[libc::pid_t; 1],
    program: *const libc::c_char,
    arguments: &[*const libc::c_char; 3],
) -> ! {
    // SAFETY: system calls on live values.
    unsafe {
        for group in groups {
            libc::write(group.as_raw_fd(), c"0".as_ptr().cast(), 1);
        }
        let mut how: libc::clone_args = std::mem::zeroed();
        how.flags = libc::CLONE_PARENT as u64;
        how.set_tid = wanted.as_ptr() as u64;
        how.set_tid_size = 1;
        match libc::syscall(libc::SYS_clone3, &how, size_of::<libc::clone_args>()) {
            0 => {
                libc::execv(program, arguments.as_ptr());
                libc::_exit(127);
            }
            made if made > 0 => libc::_exit(0),
            _ => libc::_exit(*libc::__errno_location()),
        }
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        let pid = libc::pid_t::try_from(self.0).expect("a PID");
        // SAFETY: our own child, which has not been waited for.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
    }
}

/// The lists of processes of a container's cgroups, open.
fn groups_of(container: &str) -> Vec<File> {
    let first = super::run("docker", &["inspect", container, "--format", "{{.State.Pid}}"]);
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", first.trim())).expect("a running container");
    let lines = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let controllers = controllers.strip_prefix("name=").unwrap_or(controllers);
        File::options().write(true).open(format!("/sys/fs/cgroup/{controllers}{path}/cgroup.procs")).ok()
    });
    let lists: Vec<File> = lines.collect();
    assert!(!lists.is_empty(), "{groups}");
    lists
}
