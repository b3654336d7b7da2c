//! Starts the processes, does to them what a test wants, and collects what they were told.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command as Program, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use quorate::internals::{self, Lost};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::judge::{Findings, Weight};
use crate::node::{ANSWER, ARGS, Args, Command};
use crate::proxy::{Net, Pass};
use crate::workload::CLIENTS;

/// Far beyond what a healthy cluster needs to serve, also on a machine with much else to do.
const PATIENCE: Duration = Duration::from_secs(120);

/// Some processes, their directories, and the network between them.
pub struct Scene {
    /// The test that runs it: its name leads a new process back here.
    test: &'static str,
    pub seed: u64,
    pub rng: StdRng,
    pub net: Net,
    dir: TempDir,
    nodes: Vec<Option<Process>>,
    journaled: bool,
    lives: u64,
    began: Instant,
}

impl Scene {
    /// `size` nodes, started. With `journaled`, their disks can lose power.
    pub fn new(test: &'static str, seed: u64, size: usize, journaled: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("quorate-processes-").tempdir().expect("a directory");
        let listens = |n: usize| dir.path().join(name(n)).join("listens");
        for n in 0..size {
            fs::create_dir_all(dir.path().join(name(n)).join("journals")).expect("a directory");
        }
        let net = Net::new(size, listens).expect("loopback has free ports");
        let rng = StdRng::seed_from_u64(seed);
        let nodes = (0..size).map(|_| None).collect();
        let mut scene = Scene { test, seed, rng, net, dir, nodes, journaled, lives: 0, began: Instant::now() };
        (0..size).for_each(|n| scene.start(n));
        scene.all_serve();
        scene
    }

    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// A node, by lot.
    pub fn any(&mut self) -> usize {
        self.rng.random_range(0..self.nodes.len())
    }

    /// Lets real time pass: some between the two, in milliseconds.
    pub fn pass(&mut self, ms: std::ops::Range<u64>) {
        std::thread::sleep(Duration::from_millis(self.rng.random_range(ms)));
    }

    fn log(&self, what: &str) {
        println!("{:7.3} {what}", self.began.elapsed().as_secs_f64());
    }

    fn place(&self, n: usize, what: &str) -> PathBuf {
        self.dir.path().join(name(n)).join(what)
    }

    /// Starts node `n`, if it is not running.
    pub fn start(&mut self, n: usize) {
        if self.nodes[n].is_some() {
            return;
        }
        self.lives += 1;
        let told = self.dir.path().join(format!("told-{}", self.lives));
        fs::create_dir(&told).expect("a directory");
        // Nobody is to look for the new life at the address of an old one.
        let _ = fs::remove_file(self.place(n, "listens"));
        let peers = (0..self.size()).map(|to| (name(to), self.net.address(n, to).to_owned())).collect();
        let args = Args {
            name: name(n),
            directory: self.place(n, "data"),
            journals: self.journaled.then(|| self.place(n, "journals")),
            listens: self.place(n, "listens"),
            told,
            peers,
            first_client: self.lives * CLIENTS,
            seed: self.seed,
        };
        self.log(&format!("start {} as life {}", args.name, self.lives));
        self.nodes[n] = Some(Process::start(self.test, &args));
    }

    /// Ends node `n` at once, stopped or not. What it wrote is in the page cache.
    pub fn kill(&mut self, n: usize) {
        if let Some(mut process) = self.nodes[n].take() {
            self.log(&format!("kill {}", name(n)));
            process.check_running();
            process.signal(Signal::KILL);
            process.child.wait().expect("a child");
        }
    }

    /// Ends all nodes at one moment, or nearly.
    pub fn kill_all(&mut self) {
        for process in self.nodes.iter_mut().flatten() {
            process.check_running();
            process.signal(Signal::KILL);
        }
        self.log("kill all");
        for mut process in self.nodes.iter_mut().filter_map(Option::take) {
            process.child.wait().expect("a child");
        }
    }

    /// Stops node `n` between two instructions.
    pub fn stop(&mut self, n: usize) {
        self.signal(n, Signal::STOP, "stop");
    }

    /// Lets a stopped node go on.
    pub fn go_on(&mut self, n: usize) {
        self.signal(n, Signal::CONT, "continue");
    }

    fn signal(&mut self, n: usize, signal: Signal, what: &str) {
        if let Some(process) = &self.nodes[n] {
            self.log(&format!("{what} {}", name(n)));
            process.signal(signal);
        }
    }

    /// Lets node `n`, which was killed, find its disk as a power failure left it.
    pub fn power_failure(&mut self, n: usize) -> Lost {
        assert!(self.nodes[n].is_none(), "the process is there");
        let seed = self.rng.random();
        let lost = internals::power_failure(&self.place(n, "data"), &self.place(n, "journals"), seed);
        let lost = lost.unwrap_or_else(|error| panic!("{}: {error}", name(n)));
        self.log(&format!("{} lost its power: {lost:?}", name(n)));
        lost
    }

    /// What becomes of everything that some node sends to some other.
    pub fn set_link(&mut self, from: usize, to: usize, pass: Pass) {
        self.log(&format!("{} -> {}: {pass:?}", name(from), name(to)));
        self.net.set(from, to, pass);
    }

    pub fn heal(&mut self) {
        self.log("heal");
        self.net.heal();
    }

    /// Waits until every node serves.
    pub fn all_serve(&mut self) {
        self.tell_all(|_| Command::Ready);
    }

    /// Mends everything, stops the load, settles what is open, and judges all that was written down.
    pub fn finish(mut self) -> Weight {
        self.heal();
        (0..self.size()).for_each(|n| self.go_on(n));
        (0..self.size()).for_each(|n| self.start(n));
        self.all_serve();
        self.log("all serve");
        self.tell_all(|_| Command::Quiet);
        let tickets: Vec<_> = self.collect().history.calls().iter().filter_map(|call| call.ticket).collect();
        self.log(&format!("settle {} tickets", tickets.len()));
        let n = self.any();
        self.tell(n, &Command::Resolve(tickets));
        self.wait(n);
        // Before the log is told, so that it reaches as far as anything in here: a lock that is given back late has a revision
        // too.
        let mut findings = self.collect();
        let dump = |scene: &Self, n| scene.place(n, "log.json");
        let paths: Vec<_> = (0..self.size()).map(|n| dump(&self, n)).collect();
        self.tell_all(|n| Command::Dump(paths[n].clone()));
        for path in paths {
            let text = fs::read(path).expect("written by the node");
            findings.logs.push(serde_json::from_slice(&text).expect("written by the node"));
        }
        self.log("hang up");
        self.nodes.iter_mut().flatten().for_each(Process::end);
        findings.judge(self.dir.path())
    }

    /// What all lives were told so far.
    fn collect(&self) -> Findings {
        let mut findings = Findings::new(self.seed);
        for life in 1..=self.lives {
            findings.add(&self.dir.path().join(format!("told-{life}")));
        }
        findings
    }

    fn tell_all(&mut self, command: impl Fn(usize) -> Command) {
        let running: Vec<usize> = (0..self.size()).filter(|n| self.nodes[*n].is_some()).collect();
        running.iter().for_each(|n| self.tell(*n, &command(*n)));
        running.iter().for_each(|n| self.wait(*n));
    }

    fn tell(&mut self, n: usize, command: &Command) {
        self.nodes[n].as_mut().expect("it runs").tell(command);
    }

    fn wait(&mut self, n: usize) {
        self.nodes[n].as_mut().expect("it runs").wait_for_answer(&name(n));
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Also when the test fails: nothing of it is to be left running.
        for process in self.nodes.iter_mut().flatten() {
            process.signal(Signal::KILL);
            let _ = process.child.wait();
        }
        if std::thread::panicking() {
            self.dir.disable_cleanup(true);
            println!("seed {}: everything the processes wrote is in {}", self.seed, self.dir.path().display());
        }
    }
}

fn name(n: usize) -> String {
    format!("node-{}", n + 1)
}

/// One life of one node.
struct Process {
    child: Child,
    answers: mpsc::Receiver<()>,
    /// Where it writes its errors.
    errors: PathBuf,
}

impl Process {
    fn start(test: &str, args: &Args) -> Self {
        let errors = args.told.join("stderr");
        let mut child = Program::new(std::env::current_exe().expect("this program"))
            .args([test, "--exact", "--include-ignored", "--nocapture", "--test-threads=1"])
            .env(ARGS, serde_json::to_string(args).expect("plain data"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&errors).expect("a new directory"))
            .spawn()
            .expect("a process can be started");
        let (send, answers) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        std::thread::spawn(move || {
            let lines = output.lines().map_while(Result::ok);
            lines.filter(|line| line.starts_with(ANSWER)).try_for_each(|_| send.send(()))
        });
        Process { child, answers, errors }
    }

    fn signal(&self, signal: Signal) {
        // It may have ended by itself; whoever needs it finds that out.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    fn check_running(&mut self) {
        if let Some(status) = self.child.try_wait().expect("a child") {
            panic!("a node ended by itself ({status}):\n{}", self.errors());
        }
    }

    fn errors(&self) -> String {
        fs::read_to_string(&self.errors).unwrap_or_default()
    }

    fn tell(&mut self, command: &Command) {
        self.check_running();
        let line = serde_json::to_string(command).expect("plain data") + "\n";
        let told = self.child.stdin.as_mut().expect("piped").write_all(line.as_bytes());
        told.unwrap_or_else(|error| panic!("{error}:\n{}", self.errors()));
    }

    fn wait_for_answer(&mut self, name: &str) {
        if let Err(failed) = self.answers.recv_timeout(PATIENCE) {
            panic!("{name} does not answer ({failed}):\n{}", self.errors());
        }
    }

    /// Hangs up and waits for an orderly end.
    fn end(&mut self) {
        drop(self.child.stdin.take());
        let status = self.child.wait().expect("a child");
        assert!(status.success(), "a node did not end well ({status}):\n{}", self.errors());
    }
}
