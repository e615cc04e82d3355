//! What the embedded store can do: durable commits per second and point reads, alone and beside writes.
//!
//! Every commit updates one record of about 500 bytes and one small second key, as the core does, and is acknowledged after a
//! true sync. Figures depend on the disk; run on the disk that will be used (`TMPDIR`).

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench stops at the first surprise")]
#![allow(clippy::disallowed_methods, reason = "a bench reads the clock")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use proxy_core::store::sled_store::{SledOptions, SledStore};
use proxy_core::store::{Commit, Expect, Key, Store as _, Table, Version, Write};

const RECORDS: u64 = 20_000;

fn device(n: u64) -> Key {
    Key::new(Table::Device, format!("sn-{:08}", n.wrapping_mul(0x9E37_79B9) % RECORDS))
}

fn commit(n: u64) -> Commit {
    let slot = Key::new(Table::Ledger, format!("slot-{:06}", n % 10_000));
    let writes = vec![
        Write::put(device(n), Expect::Any, vec![b'r'; 500]),
        Write::put(slot, Expect::Any, Bytes::from_static(b"sixteen bytes...")),
    ];
    Commit { version: Version(u128::from(n).to_be_bytes()), writes, fence: None }
}

/// Commits `total` times with `tasks` tasks at once and gives the time it took.
async fn commit_all(store: &Arc<SledStore>, tasks: u64, total: u64) -> Duration {
    let next = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let running: Vec<_> = (0..tasks)
        .map(|_| {
            let (store, next) = (Arc::clone(store), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= total {
                        break;
                    }
                    store.commit(commit(n)).await.unwrap();
                }
            })
        })
        .collect();
    for task in running {
        task.await.unwrap();
    }
    started.elapsed()
}

async fn read_all(store: &SledStore, total: u64) -> Duration {
    let started = Instant::now();
    for n in 0..total {
        std::hint::black_box(store.get(&device(n)).await.unwrap());
    }
    started.elapsed()
}

fn bench(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let options = SledOptions { min_free_bytes: 0, ..SledOptions::default() };
    let store = Arc::new(SledStore::open(dir.path(), options).unwrap());
    runtime.block_on(commit_all(&store, 512, RECORDS));

    let mut group = criterion.benchmark_group("store");
    group.sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(4));
    group.throughput(Throughput::Elements(1));
    for tasks in [1, 16, 256] {
        group.bench_function(format!("durable commits, {tasks} tasks"), |bencher| {
            // A round below the number of tasks would measure one sync instead of the rate.
            bencher.iter_custom(|total| {
                let rounded = total.max(tasks * 4);
                let scale = u32::try_from(rounded / total).unwrap_or(1).max(1);
                runtime.block_on(commit_all(&store, tasks, total * u64::from(scale))) / scale
            });
        });
    }
    group.bench_function("point reads, alone", |bencher| {
        bencher.iter_custom(|total| runtime.block_on(read_all(&store, total)));
    });
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..64)
        .map(|task| {
            let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
            runtime.spawn(async move {
                let mut n = task * 1_000;
                while !stop.load(Ordering::Relaxed) {
                    store.commit(commit(n)).await.unwrap();
                    n += 1;
                }
            })
        })
        .collect();
    group.bench_function("point reads, beside saturating writes", |bencher| {
        bencher.iter_custom(|total| runtime.block_on(read_all(&store, total)));
    });
    stop.store(true, Ordering::Relaxed);
    runtime.block_on(async {
        for writer in writers {
            writer.await.unwrap();
        }
        store.close().await;
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
