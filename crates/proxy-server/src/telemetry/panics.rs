//! A panic is told as every other event is: one line in the log, in the log's own format, with the task that panicked.

use std::panic::PanicHookInfo;

use proxy_core::supervise;

/// Reports every later panic of this process through the log.
pub(super) fn log_them() {
    std::panic::set_hook(Box::new(log));
}

fn log(panic: &PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("no message");
    let location = panic.location().map(ToString::to_string);
    let task = supervise::current();
    let (task, instance) = task.map(|task| (task.name, task.instance)).unzip();
    let instance = instance.flatten();
    let thread = std::thread::current();
    tracing::error!(
        task,
        instance = instance.as_ref().map(tracing::field::display),
        thread = thread.name(),
        location,
        "panicked: {message}"
    );
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use proxy_core::ids::InstanceName;
    use proxy_core::supervise::{Died, Supervisor, Task};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_panic_is_one_line_of_json_that_names_the_task_and_its_instance() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone()).finish();
        let _logging = tracing::subscriber::set_default(subscriber);
        let before = std::panic::take_hook();
        log_them();
        let task = Task::of("dispatcher", &InstanceName::parse("eu-1").unwrap());
        let died = Supervisor::default().watch(task, async { panic!("two\nlines") }).await;
        std::panic::set_hook(before);
        assert_eq!(died, Err::<(), _>(Died));
        let text = String::from_utf8(lines.0.lock().clone()).unwrap();
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&line["level"], &line["message"], &line["task"], &line["instance"]),
            (&"ERROR".into(), &"panicked: two\nlines".into(), &"dispatcher".into(), &"eu-1".into()),
            "{text}"
        );
        assert!(line["location"].as_str().unwrap().contains("panics.rs"), "{text}");
    }
}
