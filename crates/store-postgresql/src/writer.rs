//! The one task that writes: batches in the order of their commits, and what to do when one has no answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use proxy_core::ids::InstanceName;
use proxy_core::store::CommitError;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_postgres::error::{DbError, SqlState};
use uuid::Uuid;

use crate::batch::{Batch, Columns, Limits, Told, Unit};
use crate::link::{Link, Silent};
use crate::open_error::{describe, is_refusal};
use crate::target::Target;

/// The first pause between two tries to connect.
const WAIT_MIN: Duration = Duration::from_millis(50);

/// So often a batch is tried that runs into others or loses its connection. After each try it is known that nothing was applied.
const TRIES_MAX: u32 = 16;

/// What the writer and whoever hands it commits both see.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) target: String,
    closing: AtomicBool,
    trouble: Mutex<Option<String>>,
    steps: AtomicU64,
}

impl Shared {
    pub(crate) fn new(target: String) -> Self {
        Self { target, closing: AtomicBool::new(false), trouble: Mutex::default(), steps: AtomicU64::new(0) }
    }

    /// Whether a new commit may come in now.
    pub(crate) fn admits(&self) -> Result<(), String> {
        if self.is_closing() {
            return Err(format!("the store at {} is closed", self.target));
        }
        self.trouble.lock().clone().map_or(Ok(()), Err)
    }

    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    pub(crate) fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    fn step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }
}

/// What is sent to the writer.
pub(crate) enum Message {
    Commit(Unit),
    /// Ends when what was sent before is done.
    Close,
}

/// The writer, see the module.
pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) target: Target,
    pub(crate) inbox: mpsc::Receiver<Message>,
    pub(crate) limits: Limits,
    pub(crate) commit_timeout: Duration,
    pub(crate) wait_max: Duration,
    pub(crate) finished: watch::Sender<bool>,
    link: Option<Link>,
    lines: HashMap<InstanceName, i32>,
    /// An attempt that the server may forget.
    settled: Option<Uuid>,
    /// Came out of the inbox and did not fit into its batch.
    held: Option<Unit>,
    /// Nothing comes any more.
    ended: bool,
    /// The next pause between two tries to connect.
    wait: Duration,
}

/// What became of a batch that was tried once.
enum Tried {
    Told(Told),
    /// Nothing happened; it may go better next time.
    Again,
    /// The attempt may have happened.
    Unknown(Uuid),
    /// Nothing happened, and nothing will.
    Refused(CommitError),
}

/// Why a batch has no answer.
enum Unanswered {
    /// The server refused.
    Refusal(Box<DbError>),
    Lost,
}

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        target: Target,
        link: Link,
        inbox: mpsc::Receiver<Message>,
        limits: Limits,
        (commit_timeout, wait_max): (Duration, Duration),
    ) -> (Self, watch::Receiver<bool>) {
        let (finished, told) = watch::channel(false);
        let writer = Self {
            shared,
            target,
            inbox,
            limits,
            commit_timeout,
            wait_max,
            finished,
            link: Some(link),
            lines: HashMap::new(),
            settled: None,
            held: None,
            ended: false,
            wait: WAIT_MIN,
        };
        (writer, told)
    }

    pub(crate) async fn run(mut self) {
        while let Some(batch) = self.next().await {
            self.carry_out(batch).await;
        }
        self.refuse_waiting(&format!("the store at {} is closed", self.shared.target));
        self.finished.send_replace(true);
    }

    /// What goes next: what has come meanwhile, as far as it fits together.
    async fn next(&mut self) -> Option<Batch> {
        let first = match self.held.take() {
            Some(unit) => unit,
            None => self.wait_for_one().await?,
        };
        let mut batch = Batch::of(first);
        while self.held.is_none() && !self.ended {
            match self.inbox.try_recv() {
                Ok(Message::Commit(unit)) => self.held = batch.add(unit, self.limits).err(),
                Ok(Message::Close) | Err(mpsc::error::TryRecvError::Disconnected) => self.ended = true,
                Err(mpsc::error::TryRecvError::Empty) => break,
            }
        }
        Some(batch)
    }

    /// Waits for a commit, and sees to it meanwhile that there is a connection.
    async fn wait_for_one(&mut self) -> Option<Unit> {
        while !self.ended {
            let (link, wait) = (&mut self.link, self.wait);
            let disconnected = async {
                match link {
                    Some(link) => link.lost().await,
                    None => tokio::time::sleep(wait).await,
                }
            };
            tokio::select! {
                biased;
                message = self.inbox.recv() => match message {
                    Some(Message::Commit(unit)) => return Some(unit),
                    Some(Message::Close) | None => self.ended = true,
                },
                () = disconnected => {
                    self.link = None;
                    // Why not is what the store's health says.
                    let _connected = self.connect().await;
                }
            }
        }
        None
    }

    /// Connects, unless it is connected. If that fails, no writes are taken until it does not.
    async fn connect(&mut self) -> Result<(), String> {
        if self.link.as_ref().is_some_and(|link| !link.is_lost()) {
            return Ok(());
        }
        self.link = None;
        self.shared.step();
        match Link::open(&self.target, self.commit_timeout).await {
            Ok(link) => {
                self.link = Some(link);
                *self.shared.trouble.lock() = None;
                Ok(())
            }
            Err(error) => Err(self.trouble(&error.to_string())),
        }
    }

    /// No writes are taken from here on, until the server was reached anew.
    fn trouble(&mut self, why: &str) -> String {
        let why = format!("{why}; writes are taken again by themselves once that is mended");
        self.link = None;
        self.wait = (self.wait * 2).min(self.wait_max);
        *self.shared.trouble.lock() = Some(why.clone());
        why
    }

    /// Tells everybody who has sent nothing to the server yet that it takes no writes.
    fn refuse_waiting(&mut self, why: &str) {
        let refused = || Err(CommitError::ReadOnly(why.to_owned()));
        if let Some(unit) = self.held.take() {
            unit.tell(refused());
        }
        loop {
            match self.inbox.try_recv() {
                Ok(Message::Commit(unit)) => unit.tell(refused()),
                Ok(Message::Close) | Err(mpsc::error::TryRecvError::Disconnected) => return self.ended = true,
                Err(mpsc::error::TryRecvError::Empty) => return,
            }
        }
    }

    async fn carry_out(&mut self, batch: Batch) {
        for _ in 0..TRIES_MAX {
            if let Err(why) = self.connect().await {
                batch.refuse(&CommitError::ReadOnly(why.clone()));
                return self.refuse_waiting(&why);
            }
            match self.attempt(&batch).await {
                Tried::Told(told) => return batch.tell(&told),
                Tried::Again => {}
                Tried::Unknown(attempt) => match self.settle(attempt).await {
                    Some(Some(told)) => return batch.tell(&told),
                    Some(None) => {}
                    None => {
                        let why =
                            "the server was away when the store was closed, and what became of the commit is unknown";
                        batch.refuse(&CommitError::Failed(why.to_owned()));
                        self.ended = true;
                        return self.refuse_waiting(why);
                    }
                },
                // One of them is at fault, and the others are not.
                Tried::Refused(_) if batch.len() > 1 => {
                    for single in batch.one_by_one() {
                        Box::pin(self.carry_out(single)).await;
                    }
                    return;
                }
                Tried::Refused(why) => return batch.refuse(&why),
            }
        }
        batch.refuse(&CommitError::Busy);
    }

    /// Tries once.
    async fn attempt(&mut self, batch: &Batch) -> Tried {
        if batch.is_empty() {
            return Tried::Told(Told::default());
        }
        self.shared.step();
        if let Err(unanswered) = self.learn_lines(batch).await {
            return match unanswered {
                Unanswered::Refusal(refusal) => self.judge(&refusal),
                Unanswered::Lost => Tried::Again,
            };
        }
        let Some(link) = &self.link else { return Tried::Again };
        // Ordered by time, so that the index of attempts grows at one end.
        let attempt = Uuid::now_v7();
        let answer = link.commit(attempt, self.settled, &Columns::of(batch, &self.lines)).await;
        self.shared.step();
        match answer {
            Ok(told) => {
                if told.anything_applied() {
                    self.settled = Some(attempt);
                }
                self.wait = WAIT_MIN;
                Tried::Told(told)
            }
            Err(silent) => match self.unanswered(silent) {
                Unanswered::Refusal(refusal) => self.judge(&refusal),
                Unanswered::Lost => Tried::Unknown(attempt),
            },
        }
    }

    /// Learns the numbers of lines that it does not know yet.
    async fn learn_lines(&mut self, batch: &Batch) -> Result<(), Unanswered> {
        for line in batch.lines() {
            if self.lines.contains_key(line) {
                continue;
            }
            let Some(link) = &self.link else { return Err(Unanswered::Lost) };
            match link.line(line).await {
                Ok(number) => {
                    self.lines.insert(line.clone(), number);
                }
                Err(silent) => return Err(self.unanswered(silent)),
            }
        }
        Ok(())
    }

    /// Tells a refusal from silence, after which the connection is cut.
    fn unanswered(&mut self, silent: Silent) -> Unanswered {
        let why = match silent {
            Silent::Error(error) => match error.as_db_error() {
                Some(refusal) if is_refusal(&error) => {
                    return Unanswered::Refusal(Box::new(refusal.clone()));
                }
                _ => describe(&error),
            },
            Silent::Late => format!("no answer within {} s", self.commit_timeout.as_secs_f64()),
        };
        tracing::info!(server = self.shared.target, why, "the connection that writes was given up");
        self.link = None;
        Unanswered::Lost
    }

    /// What a refusal means. Nothing was applied.
    fn judge(&mut self, refusal: &DbError) -> Tried {
        let text = format!("{} (SQLSTATE {})", refusal.message(), refusal.code().code());
        match refusal.code() {
            // Somebody else created a key or went first: what it did can be seen now.
            &SqlState::UNIQUE_VIOLATION | &SqlState::T_R_SERIALIZATION_FAILURE | &SqlState::T_R_DEADLOCK_DETECTED => {
                Tried::Again
            }
            &SqlState::LOCK_NOT_AVAILABLE => Tried::Refused(CommitError::Busy),
            // What is wrong is the commit: data, a bound, a constraint.
            code if ["22", "23", "54"].iter().any(|class| code.code().starts_with(class)) => {
                Tried::Refused(CommitError::Refused(text))
            }
            _ => {
                let why = format!("PostgreSQL at {} refuses to write: {text}", self.shared.target);
                Tried::Refused(CommitError::ReadOnly(self.trouble(&why)))
            }
        }
    }

    /// Finds out what became of an attempt, however long that takes: nothing else may leave before. `None` if the store is closed meanwhile and
    /// the server does not answer. `Some(None)`: it never happens.
    async fn settle(&mut self, attempt: Uuid) -> Option<Option<Told>> {
        let mut closing_since: Option<Instant> = None;
        loop {
            if self.shared.is_closing() {
                let since = *closing_since.get_or_insert_with(Instant::now);
                if since.elapsed() > self.commit_timeout {
                    return None;
                }
            }
            if let Err(why) = self.connect().await {
                self.refuse_waiting(&why);
                tokio::time::sleep(self.wait).await;
                continue;
            }
            let Some(link) = &self.link else { continue };
            let answer = link.settle(attempt).await;
            self.shared.step();
            match answer {
                Ok(told) => return Some(told),
                Err(silent) => match self.unanswered(silent) {
                    // It is under way over there.
                    Unanswered::Refusal(refusal) if refusal.code() == &SqlState::LOCK_NOT_AVAILABLE => {}
                    Unanswered::Refusal(refusal) => {
                        let text = format!("{} (SQLSTATE {})", refusal.message(), refusal.code().code());
                        let why =
                            self.trouble(&format!("PostgreSQL at {} refuses to write: {text}", self.shared.target));
                        self.refuse_waiting(&why);
                        tokio::time::sleep(self.wait).await;
                    }
                    Unanswered::Lost => {}
                },
            }
        }
    }
}
