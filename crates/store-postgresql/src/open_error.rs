//! Why a database cannot be the store.

/// Why a database cannot be used. Each says what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Nobody answers there, or nobody is let in.
    #[error("PostgreSQL at {target} cannot be reached: {why}")]
    Unreachable {
        /// User, host and database.
        target: String,
        /// What went wrong.
        why: String,
    },
    /// The certificates that vouch for the server cannot be used.
    #[error("the connection to PostgreSQL at {target} cannot be encrypted: {why}")]
    Tls {
        /// User, host and database.
        target: String,
        /// What went wrong.
        why: String,
    },
    /// The server is too old.
    #[error("PostgreSQL at {target} is version {found}; 14 or newer is needed")]
    TooOld {
        /// User, host and database.
        target: String,
        /// The version found.
        found: String,
    },
    /// It takes no writes.
    #[error(
        "PostgreSQL at {target} takes no writes: {why}. Name the primary, or all hosts separated by commas, of which the primary is taken"
    )]
    ReadOnly {
        /// User, host and database.
        target: String,
        /// How that shows.
        why: String,
    },
    /// A setting of the server would lose what was acknowledged.
    #[error("PostgreSQL at {target} has {setting}: {why}")]
    Unsafe {
        /// User, host and database.
        target: String,
        /// The setting and its value.
        setting: String,
        /// What it would do, and the way out.
        why: &'static str,
    },
    /// There is no schema, or an older one.
    #[error(
        "PostgreSQL at {target} has schema {found} of dps-proxy (0 is none), and this release needs {needed}: run `dps-proxy migrate` \
         first, as a role that may create tables"
    )]
    NotMigrated {
        /// User, host and database.
        target: String,
        /// The schema found.
        found: i32,
        /// The schema needed.
        needed: i32,
    },
    /// A newer release has changed it such that this one would do damage.
    #[error(
        "PostgreSQL at {target} has schema {found} of dps-proxy, which releases that know schema {least_writer} may write to; this one knows \
         {known}: run a newer release"
    )]
    Newer {
        /// User, host and database.
        target: String,
        /// The schema found.
        found: i32,
        /// The oldest schema whose releases may write to it.
        least_writer: i32,
        /// The schema that this release knows.
        known: i32,
    },
    /// A step of the schema is not the one that this release has.
    #[error(
        "step {version} of the schema of PostgreSQL at {target} is not the one of this release: it was made by another build. Use that one, or \
         another database"
    )]
    Altered {
        /// User, host and database.
        target: String,
        /// The step.
        version: i32,
    },
    /// Another process uses it.
    #[error(
        "the database at {target} is in use by another dps-proxy ({holder}): one process at a time may use a database. Stop that one, or give \
         this one a database of its own"
    )]
    InUse {
        /// User, host and database.
        target: String,
        /// Which, as far as the server tells.
        holder: String,
    },
    /// The server refused something that is needed.
    #[error(
        "PostgreSQL at {target} refuses what is needed: {why}. What a gateway's role needs is granted by `dps-proxy migrate --grant-to ROLE`; to \
         migrate, a role has to own the schema, or be allowed to create it"
    )]
    Refused {
        /// User, host and database.
        target: String,
        /// What it said.
        why: String,
    },
}

/// What went wrong, in words, without what was sent.
pub(crate) fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(refusal) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", refusal.message(), refusal.code().code());
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// Whether the server answered, and refused: then nothing of the statement happened. Everything else says nothing of what became of it, also the
/// last words of a session that ends.
pub(crate) fn is_refusal(error: &tokio_postgres::Error) -> bool {
    use tokio_postgres::error::Severity;
    error.as_db_error().is_some_and(|refusal| refusal.parsed_severity() == Some(Severity::Error))
}
