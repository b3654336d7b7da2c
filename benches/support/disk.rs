//! What the disk itself can do: the limit that every durable write of ours is compared with.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use super::{Sample, nanos};

/// Bytes of one raw write: what a handful of small proposals take in the log, about.
pub const WRITE_BYTES: usize = 2300;
/// Bytes of a file that is overwritten again and again.
const RING_BYTES: u64 = 64 << 20;

#[derive(Copy, Clone, Debug)]
pub enum Way {
    /// To the end of a growing file, and fdatasync.
    Append,
    /// Over zeros that were written and synced before, and fdatasync.
    Overwrite,
}

/// Lets `writers` threads write and sync files of their own for `time`.
pub fn syncs(directory: &Path, way: Way, writers: usize, bytes: usize, time: Duration) -> Sample {
    let ready = Barrier::new(writers);
    let (ready, block) = (&ready, &vec![7; bytes]);
    let started = Instant::now();
    let mut times = Vec::new();
    let mut seconds = 0.0;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..writers)
            .map(|writer| {
                scope.spawn(move || {
                    let path = directory.join(format!("raw-{way:?}-{writer}"));
                    let file = open(&path, way);
                    ready.wait();
                    let started = Instant::now();
                    let mut times = Vec::new();
                    while started.elapsed() < time {
                        let before = Instant::now();
                        write(&file, way, block, times.len() as u64);
                        file.sync_data().expect("the disk syncs");
                        times.push(nanos(before.elapsed()));
                    }
                    let seconds = started.elapsed().as_secs_f64();
                    drop(std::fs::remove_file(path));
                    (seconds, times)
                })
            })
            .collect();
        for thread in threads {
            let (took, mut some) = thread.join().expect("no writer panics");
            seconds = f64::max(seconds, took);
            times.append(&mut some);
        }
    });
    debug_assert!(started.elapsed() >= time);
    Sample::new(seconds, times)
}

fn open(path: &Path, way: Way) -> File {
    let file = OpenOptions::new().create(true).write(true).truncate(true).open(path).expect("a file can be made");
    if let Way::Overwrite = way {
        let zeros = vec![0; 1 << 20];
        (0..RING_BYTES >> 20).for_each(|at| file.write_all_at(&zeros, at << 20).expect("the disk takes it"));
        file.sync_all().expect("the disk syncs");
    }
    file
}

fn write(mut file: &File, way: Way, block: &[u8], count: u64) {
    match way {
        Way::Append => file.write_all(block).expect("the disk takes it"),
        Way::Overwrite => {
            let at = count * block.len() as u64 % (RING_BYTES - block.len() as u64);
            file.write_all_at(block, at).expect("the disk takes it");
        }
    }
}

/// D: what three nodes on this disk could do at most if each of their writes was one sync.
pub struct Limit(Vec<Sample>);

impl Limit {
    pub fn new() -> Self {
        Limit(Vec::new())
    }

    /// Measures once more; the mean counts, so that it is of the same time as the cases between.
    pub fn measure(&mut self, directory: &Path, quick: bool) {
        let time = Duration::from_millis(if quick { 700 } else { 1500 });
        let sample = syncs(directory, Way::Append, 3, WRITE_BYTES, time);
        println!("raw writers=3 bytes={WRITE_BYTES} way=append {}", sample.line());
        self.0.push(sample);
    }

    pub fn per_second(&self) -> f64 {
        self.mean(Sample::per_second)
    }

    pub fn p50_us(&self) -> f64 {
        self.mean(|sample| sample.us(0.5))
    }

    fn mean(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        self.0.iter().map(of).sum::<f64>() / self.0.len() as f64
    }
}
