//! A QEMU process of ours: started paused, driven over QMP, and gone when we are, unless released.
//!
//! Source: `qemu-options.hx` of QEMU 7.2 and 10.0. QEMU connects to a socket that we listen on, so there is
//! nothing to poll for: it either comes, or it ends and its own words say why. The socket lies in a directory
//! that only we may enter and that is removed as soon as QEMU has connected.
//!
//! If we are killed outright (`kill -9`), nobody ends QEMU: it stays behind, stopped unless its guest was told to run.

mod command_line;
mod scope;
mod stderr;

use std::{
    ffi::OsString,
    os::fd::BorrowedFd,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

pub(crate) use command_line::Properties;
pub use command_line::{CommandLine, FLAGS, Opt};
pub use scope::Scope;
use serde_json::{Value, json};
use tokio::{
    net::UnixListener,
    process::{Child, Command},
    time::timeout,
};

use self::stderr::Stderr;
use crate::{
    Error, Result,
    qmp::{self, Event, Version},
};

/// How long a QEMU may take from its start to its QMP greeting. Under load and with much memory to set up,
/// several seconds were seen.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long we wait for the end of a QEMU that closed its connection or was told to quit.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Name of our monitor's character device, unlikely to be anyone else's.
const MONITOR: &str = "hyperferry-qmp";

/// A QEMU to be started.
#[derive(Clone, Debug)]
pub struct Launch {
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(&'static str, OsString)>,
    console: bool,
    scope: Option<Scope>,
    log: Option<PathBuf>,
    also_at: Option<PathBuf>,
}

impl Launch {
    /// This program with these arguments. `-S` and our monitor are added; all else is the caller's.
    pub fn new<A: Into<String>>(program: impl Into<PathBuf>, arguments: impl IntoIterator<Item = A>) -> Self {
        let arguments = arguments.into_iter().map(Into::into).collect();
        let environment = Vec::new();
        Self {
            program: program.into(),
            arguments,
            environment,
            console: false,
            scope: None,
            log: None,
            also_at: None,
        }
    }

    /// Lets QEMU answer at this socket as well: whoever finds it there without us can end it.
    #[must_use]
    pub fn also_at(mut self, socket: Option<&Path>) -> Self {
        self.also_at = socket.map(Path::to_owned);
        self
    }

    /// Lets QEMU write to our standard output, for `-serial stdio`. Its standard input stays closed.
    #[must_use]
    pub fn with_console(mut self) -> Self {
        self.console = true;
        self
    }

    /// Adds a variable to QEMU's environment.
    #[must_use]
    pub fn with_variable(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// Starts it in a systemd scope of its own.
    #[must_use]
    pub fn in_scope(mut self, scope: Scope) -> Self {
        self.scope = Some(scope);
        self
    }

    /// Lets QEMU write what it says to a file, which goes on once we are gone.
    #[must_use]
    pub fn with_log(mut self, log: impl Into<PathBuf>) -> Self {
        self.log = Some(log.into());
        self
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The caller's arguments.
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// The same program with other arguments.
    #[must_use]
    pub fn with_arguments(&self, arguments: Vec<String>) -> Self {
        Self { arguments, ..self.clone() }
    }
}

/// A running QEMU with its monitor. Dropping it kills the process.
#[derive(Debug)]
pub struct Process {
    owned: Owned,
    qmp: qmp::Client,
    stderr: Stderr,
}

impl Process {
    /// Starts QEMU with the guest stopped (`-S`) and waits for its greeting.
    pub async fn start(launch: &Launch) -> Result<Self> {
        let only_we = std::fs::Permissions::from_mode(0o700);
        let directory = tempfile::Builder::new()
            .prefix("hyperferry-")
            .permissions(only_we)
            .tempdir()
            .map_err(Error::system("making a private directory"))?;
        let path = directory.path().join("qmp");
        let listener = UnixListener::bind(&path).map_err(Error::system("listening for QEMU's monitor"))?;
        let mut command = match &launch.scope {
            Some(scope) => scope.command(&launch.program),
            None => Command::new(&launch.program),
        };
        let (to_stderr, mut stderr) = Stderr::open(launch.log.as_deref())?;
        command
            .envs(launch.environment.iter().map(|(name, value)| (name, value)))
            .arg("-S")
            // Opened in this order: if we are killed meanwhile, QEMU ends here, before it listens anywhere itself.
            .arg("-chardev")
            .arg(format!("socket,id={MONITOR},path={},server=off", escape(&path)))
            .arg("-mon")
            .arg(format!("chardev={MONITOR},mode=control"))
            .args(&launch.arguments)
            .args(
                launch.also_at.iter().flat_map(|path| {
                    ["-qmp".to_owned(), format!("unix:{},server=on,wait=off", escape(path))]
                }),
            )
            .stdin(Stdio::null())
            .stdout(if launch.console { Stdio::inherit() } else { Stdio::null() })
            .stderr(to_stderr)
            // A group of its own: a terminal's Ctrl-C reaches us alone, and we decide what becomes of QEMU.
            .process_group(0);
        let start_error = |source| Error::Start { program: launch.program.clone(), source };
        let mut child = Owned { child: command.spawn().map_err(start_error)?, released: false };
        tracing::debug!(program = %launch.program.display(), pid = child.child.id(), "QEMU started");
        stderr.capture(child.child.stderr.take());
        let qmp = tokio::select! {
            greeted = timeout(START_TIMEOUT, greet(&listener)) => match greeted {
                Ok(greeted) => greeted,
                Err(_) => return Err(Error::Slow {
                    doing: "starting",
                    seconds: START_TIMEOUT.as_secs(),
                    stderr: stderr.text(),
                }),
            },
            status = child.child.wait() => {
                let status = status.map_err(Error::system("waiting for QEMU"))?;
                return Err(Error::Ended { doing: "starting", status, stderr: stderr.whole_text().await });
            }
        };
        match qmp {
            Ok(qmp) => Ok(Self { owned: child, qmp, stderr }),
            Err(error) => Err(explain(&mut child.child, &mut stderr, "starting", error).await),
        }
    }

    /// QEMU's version, from its greeting.
    pub fn version(&self) -> &Version {
        self.qmp.version()
    }

    /// The process id, as long as the process has not been waited for.
    pub fn id(&self) -> Option<u32> {
        self.owned.child.id()
    }

    /// The end of what QEMU wrote to its standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Executes a command. If QEMU ends instead of answering, the error holds its own words.
    pub async fn execute(&mut self, doing: &'static str, command: &str, arguments: Value) -> Result<Value> {
        let answer = self.qmp.execute(command, arguments).await;
        self.explained(doing, answer).await
    }

    /// The run state: `running`, `paused`, `inmigrate`, …
    pub async fn run_state(&mut self, doing: &'static str) -> Result<String> {
        let status = self.execute(doing, "query-status", json!({})).await?;
        Ok(status.get("status").and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    /// Gives QEMU a file descriptor for the address `fd:name`.
    pub async fn send_fd(&mut self, doing: &'static str, name: &str, fd: BorrowedFd<'_>) -> Result<()> {
        let answer = self.qmp.send_fd(name, fd).await;
        self.explained(doing, answer).await
    }

    /// The next event. If QEMU ends first, the error holds its own words.
    pub async fn next_event(&mut self, doing: &'static str) -> Result<Event> {
        let event = self.qmp.next_event().await;
        self.explained(doing, event).await
    }

    /// Waits until QEMU ends, however long that takes.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        self.owned.child.wait().await.map_err(Error::system("waiting for QEMU"))
    }

    /// Tells QEMU to quit, and kills it if it does not.
    pub async fn quit(mut self) -> Result<()> {
        if let Err(error) = self.qmp.execute_within(END_TIMEOUT, "quit", json!({})).await {
            tracing::debug!(%error, "quit");
        }
        if timeout(END_TIMEOUT, self.owned.child.wait()).await.is_err() {
            self.owned.child.kill().await.map_err(Error::system("killing QEMU"))?;
        }
        Ok(())
    }

    /// Lets QEMU live on without us and says its process id.
    ///
    /// Our monitor goes with us. Whoever wants one later passes a `-qmp` of their own among the arguments.
    pub fn release(mut self) -> Option<u32> {
        self.owned.released = true;
        self.owned.child.id()
    }

    /// An error about a step that QEMU took too long for.
    pub(crate) fn slow(&self, doing: &'static str, limit: Duration) -> Error {
        Error::Slow { doing, seconds: limit.as_secs(), stderr: self.stderr.text() }
    }

    async fn explained<T>(&mut self, doing: &'static str, answer: qmp::Result<T>) -> Result<T> {
        match answer {
            Ok(value) => Ok(value),
            Err(error) => Err(explain(&mut self.owned.child, &mut self.stderr, doing, error).await),
        }
    }
}

/// A child that is killed when its owner goes, unless it was released.
#[derive(Debug)]
struct Owned {
    child: Child,
    released: bool,
}

impl Drop for Owned {
    fn drop(&mut self) {
        if !self.released
            && let Err(error) = self.child.start_kill()
        {
            tracing::debug!(%error, "QEMU was gone already");
        }
    }
}

async fn greet(listener: &UnixListener) -> qmp::Result<qmp::Client> {
    let (socket, _) = listener.accept().await?;
    qmp::Client::handshake(socket).await
}

/// A connection that closed is a QEMU that ends: its status and its words say more than the socket does.
async fn explain(child: &mut Child, stderr: &mut Stderr, doing: &'static str, error: qmp::Error) -> Error {
    if !matches!(error, qmp::Error::Closed { .. }) {
        return error.into();
    }
    match timeout(END_TIMEOUT, child.wait()).await {
        Ok(Ok(status)) => Error::Ended { doing, status, stderr: stderr.whole_text().await },
        Ok(Err(source)) => Error::System { doing: "waiting for QEMU", source },
        Err(_) => error.into(),
    }
}

/// A path inside a QEMU option, where a comma is written twice.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// The version of a QEMU program, without starting a machine.
pub async fn version(program: &Path) -> Result<Version> {
    let start_error = |source| Error::Start { program: program.to_owned(), source };
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(start_error)?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Error::Ended { doing: "printing its version", status: output.status, stderr });
    }
    parse_version(&stdout).ok_or_else(|| Error::Start {
        program: program.to_owned(),
        source: std::io::Error::other(format!("`--version` printed {:?}", stdout.trim())),
    })
}

/// `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)`, and copyright lines.
fn parse_version(text: &str) -> Option<Version> {
    let rest = text.lines().next()?.split_once("version ")?.1;
    let (numbers, package) = rest.split_once(" (").unwrap_or((rest, ""));
    let mut numbers = numbers.trim().split('.').map(str::parse);
    let mut next = || numbers.next()?.ok();
    let (major, minor, micro) = (next()?, next()?, next()?);
    Some(Version { major, minor, micro, package: package.trim_end_matches(')').to_owned() })
}

/// Whether this machine lets us use KVM, or why not.
pub fn kvm_usable() -> std::result::Result<(), String> {
    let reason = |error: kvm_ioctls::Error| format!("/dev/kvm: {}", std::io::Error::from(error));
    let kvm = kvm_ioctls::Kvm::new().map_err(reason)?;
    // Some sandboxes let it be opened and nothing more.
    kvm.create_vm().map(drop).map_err(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_qemu_prints_them() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright (c) 2003-2022\n";
        let version = parse_version(debian).unwrap();
        assert_eq!((version.to_string(), &*version.package), ("7.2.22".to_owned(), "Debian 1:7.2+dfsg-7"));
        assert_eq!(parse_version("QEMU emulator version 10.0.50").unwrap().to_string(), "10.0.50");
        assert_eq!(parse_version("GNU coreutils 9.1"), None);
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let launch = Launch::new("/nowhere/qemu", ["-m", "16"]);
        let error = Process::start(&launch).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot start /nowhere/qemu: No such file or directory (os error 2)");
    }

    #[tokio::test]
    async fn a_program_that_is_no_qemu_is_an_error_with_its_status() {
        let error = Process::start(&Launch::new("/bin/false", [""; 0])).await.unwrap_err();
        assert_eq!(error.to_string(), "QEMU ended (exit status: 1) while starting, without a word");
    }
}
