//! A relay: the real binary on a port of its own. That it stops in order is asserted at the end of
//! every test that does not end it on purpose.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::Mutex;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

use super::{
    clock::FakeClock,
    http::{Http, Reply},
    peer::Peer,
    wait::{LIMIT, wait_for, wait_until},
};

const BINARY: &str = env!("CARGO_BIN_EXE_landline");

pub struct Node {
    child: Child,
    addr: SocketAddr,
    output: Arc<Mutex<Output>>,
    readers: Vec<JoinHandle<()>>,
    config: Option<Scratch>,
    exit: Option<ExitStatus>,
}

#[derive(Debug, Default)]
struct Output {
    stdout: Vec<String>,
    stderr: String,
}

impl Node {
    /// A relay with the default settings.
    #[track_caller]
    #[must_use]
    pub fn start() -> Node {
        Node::with(&[])
    }

    /// A relay with these flags beside `serve --listen`.
    #[track_caller]
    #[must_use]
    pub fn with(flags: &[&str]) -> Node {
        Node::listening("127.0.0.1:0", flags)
    }

    /// As [`Node::with`], at an address that the test chose.
    #[track_caller]
    #[must_use]
    pub fn listening(listen: &str, flags: &[&str]) -> Node {
        let mut command = Command::new(BINARY);
        command.args(["serve", "--listen", listen]).args(flags);
        Node::spawn(command, None)
    }

    /// A relay whose topics are all durable, in `dir`, with further flags.
    #[track_caller]
    #[must_use]
    pub fn durable(dir: &Scratch, flags: &[&str]) -> Node {
        let mut command = Command::new(BINARY);
        command.args(["serve", "--listen", "127.0.0.1:0", "--durable", "--data-dir"]);
        command.arg(dir.path()).args(flags);
        Node::spawn(command, None)
    }

    /// As [`Node::durable`], with system calls that fail as `inject` says to strace.
    #[track_caller]
    #[must_use]
    pub fn traced(dir: &Scratch, inject: &str) -> Node {
        let mut command = Command::new("strace");
        let trace = format!("trace={}", inject.split(':').next().unwrap_or_default());
        command.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e"]);
        command.arg(format!("inject={inject}")).arg(BINARY);
        command.args(["serve", "--listen", "127.0.0.1:0", "--durable", "--data-dir"]);
        command.arg(dir.path());
        Node::spawn(command, None)
    }

    /// As [`Node::durable`], by a wall clock of its own.
    #[track_caller]
    #[must_use]
    pub fn durable_at(clock: &FakeClock, dir: &Scratch, flags: &[&str]) -> Node {
        let mut command = Command::new(BINARY);
        command.args(["serve", "--listen", "127.0.0.1:0", "--durable", "--data-dir"]);
        command.arg(dir.path()).args(flags);
        clock.put_on(&mut command);
        Node::spawn(command, None)
    }

    /// A relay in a network namespace of the machine, with these flags beside `serve`.
    #[track_caller]
    #[must_use]
    pub fn within(namespace: &str, flags: &[&str]) -> Node {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, BINARY, "serve"]).args(flags);
        Node::spawn(command, None)
    }

    /// A relay with a configuration file, which can be replaced later.
    #[track_caller]
    #[must_use]
    pub fn with_config(text: &str) -> Node {
        let config = Scratch::new("landline.toml");
        fs::write(&config.0, text).expect("write the configuration");
        let mut command = Command::new(BINARY);
        command.args(["serve", "--listen", "127.0.0.1:0", "--config"]).arg(&config.0);
        Node::spawn(command, Some(config))
    }

    /// A relay that may open only so many files.
    #[track_caller]
    #[must_use]
    pub fn with_open_files(limit: u32, flags: &[&str]) -> Node {
        let mut command = Command::new("sh");
        let script = format!("ulimit -n {limit}; exec \"$0\" \"$@\"");
        command.args(["-c", &script, BINARY, "serve", "--listen", "127.0.0.1:0"]).args(flags);
        Node::spawn(command, None)
    }

    #[track_caller]
    fn spawn(mut command: Command, config: Option<Scratch>) -> Node {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("start the relay");
        let output = Arc::new(Mutex::new(Output::default()));
        let readers = vec![
            collect(child.stdout.take(), &output, |output, line| output.stdout.push(line)),
            collect(child.stderr.take(), &output, |output, line| {
                _ = writeln!(output.stderr, "{line}");
            }),
        ];
        let addr = wait_for("the relay to listen", LIMIT, || {
            let output = output.lock();
            if let Some(status) = child.try_wait().expect("look after the relay") {
                panic!("the relay ended with {status} before it listened:\n{}", output.stderr);
            }
            let line =
                output.stdout.iter().find_map(|line| line.strip_prefix("listening on http://"));
            line.map(|addr| addr.trim().parse().expect("the relay prints an address"))
        });
        Node { child, addr, output, readers, config, exit: None }
    }

    // Talking to it.

    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A peer that has done its handshake.
    #[track_caller]
    #[must_use]
    pub fn peer(&self) -> Peer {
        Peer::connect(self.addr)
    }

    #[track_caller]
    #[must_use]
    pub fn http(&self) -> Http {
        Http::connect(self.addr)
    }

    /// One request over a connection of its own.
    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        self.http().get(path)
    }

    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&self.get("/metrics").body)
    }

    // Looking at it.

    #[must_use]
    pub fn stderr(&self) -> String {
        self.output.lock().stderr.clone()
    }

    /// Resident memory, in bytes.
    #[track_caller]
    #[must_use]
    pub fn rss(&self) -> u64 {
        self.status("VmRSS:") * 1_024
    }

    #[track_caller]
    #[must_use]
    pub fn threads(&self) -> u64 {
        self.status("Threads:")
    }

    #[track_caller]
    #[must_use]
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("list open files").count()
    }

    #[track_caller]
    fn status(&self, field: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let text = fs::read_to_string(path).expect("read the status");
        let value = text.lines().find_map(|line| line.strip_prefix(field));
        let value = value.and_then(|value| value.split_whitespace().next()?.parse().ok());
        value.unwrap_or_else(|| panic!("no {field} in\n{text}"))
    }

    /// The address space it takes, in bytes.
    #[track_caller]
    #[must_use]
    pub fn address_space(&self) -> u64 {
        self.status("VmSize:") * 1_024
    }

    /// The number that its next descriptor gets.
    #[track_caller]
    #[must_use]
    pub fn next_file(&self) -> u64 {
        let is_open = |number: &u64| {
            // A link to something that need not have a name.
            fs::read_link(format!("/proc/{}/fd/{number}", self.child.id())).is_ok()
        };
        (0..).find(|number| !is_open(number)).expect("numbers do not end")
    }

    /// Bounds what it may take from now on; `None` is the bound of this process.
    #[track_caller]
    pub fn limit(&self, resource: Resource, current: Option<u64>) {
        let Rlimit { maximum, .. } = getrlimit(resource);
        let limit = Rlimit { current: current.or(maximum), maximum };
        prlimit(self.pid(), resource, limit).expect("limit the relay");
    }

    // Ending it, and other signals.

    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid().expect("a process id"), signal).expect("send a signal");
    }

    /// Replaces the configuration file and asks the relay to read it again.
    #[track_caller]
    pub fn reload(&self, text: &str) {
        let config = self.config.as_ref().expect("a relay with a configuration file");
        fs::write(&config.0, text).expect("write the configuration");
        self.signal(Signal::HUP);
    }

    /// Waits for the relay to end by itself.
    #[track_caller]
    pub fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        let status = wait_for("the relay to end", limit, || {
            self.child.try_wait().expect("look after the relay")
        });
        self.exit = Some(status);
        for reader in self.readers.drain(..) {
            reader.join().expect("collect the output");
        }
        status
    }

    /// Stops the relay with SIGTERM; that it ends in order is asserted.
    #[track_caller]
    pub fn stop(mut self) {
        self.stop_cleanly();
    }

    /// Ends the relay with SIGKILL.
    #[track_caller]
    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        self.wait_exit(LIMIT);
    }

    #[track_caller]
    fn stop_cleanly(&mut self) {
        self.signal(Signal::TERM);
        self.ends_cleanly();
    }

    /// Waits for the relay to end, and asserts that it ended well and no thread of it did worse.
    #[track_caller]
    pub fn ends_cleanly(&mut self) {
        let status = self.wait_exit(LIMIT);
        let stderr = self.stderr();
        assert!(status.success(), "the relay ended with {status}:\n{stderr}");
        assert!(!stderr.contains("panic"), "a thread of the relay panicked:\n{stderr}");
        let late = stderr.contains("did not end in time");
        assert!(!late, "a thread of the relay was left behind:\n{stderr}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.exit.is_some() {
            return;
        }
        if thread::panicking() {
            self.signal(Signal::KILL);
            self.child.wait().ok();
            eprintln!("the relay said:\n{}", self.output.lock().stderr);
        } else {
            self.stop_cleanly();
        }
    }
}

fn collect(
    source: Option<impl Read + Send + 'static>,
    output: &Arc<Mutex<Output>>,
    store: fn(&mut Output, String),
) -> JoinHandle<()> {
    let source = BufReader::new(source.expect("a pipe"));
    let output = Arc::clone(output);
    thread::spawn(move || {
        for line in source.lines().map_while(Result::ok) {
            store(&mut output.lock(), line);
        }
    })
}

/// A file or directory of one test, removed with it.
pub struct Scratch(PathBuf);

impl Scratch {
    #[must_use]
    pub fn new(name: &str) -> Scratch {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{count}-{name}", std::process::id());
        Scratch(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name))
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if fs::remove_file(&self.0).is_err() {
            fs::remove_dir_all(&self.0).ok();
        }
    }
}

/// Values by series, as `GET /metrics` shows them.
#[derive(Clone, Debug)]
pub struct Metrics(pub BTreeMap<String, f64>);

impl Metrics {
    #[track_caller]
    #[must_use]
    pub fn parse(text: &str) -> Metrics {
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("sample {line}"));
            (series.to_owned(), value.parse().unwrap_or_else(|_| panic!("sample {line}")))
        };
        let samples = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        Metrics(samples.map(sample).collect())
    }

    /// The sum of all series whose name and labels contain each of `parts`.
    #[must_use]
    pub fn sum(&self, parts: &[&str]) -> f64 {
        let matches = |series: &str| parts.iter().all(|part| series.contains(part));
        self.0.iter().filter(|(series, _)| matches(series)).map(|(_, value)| value).sum()
    }
}

/// Waits until a metric that contains each of `parts` has reached `least`.
#[track_caller]
pub fn wait_for_metric(node: &Node, parts: &[&str], least: f64) {
    wait_until(&format!("{parts:?} to reach {least}"), LIMIT, || {
        least <= node.metrics().sum(parts)
    });
}

#[test]
fn metrics_are_summed_by_parts_of_their_series() {
    let metrics =
        Metrics::parse("# HELP a b\na_total{reason=\"slow\"} 2\na_total{reason=\"x\"} 3\n");

    assert_eq!(metrics.sum(&["a_total"]), 5.0);
    assert_eq!(metrics.sum(&["a_total", "reason=\"slow\""]), 2.0);
    assert_eq!(metrics.sum(&["b_total"]), 0.0);
}
