//! Blocking work of async functions.

/// Runs blocking work on the runtime's blocking threads: a disk may be slow, and a network file system may hang for
/// minutes, which would hold up every task of the runtime's thread. A panic in the work resumes here.
///
/// The work cannot be cancelled: it ends by itself even where the future is dropped.
pub async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_work_runs_on_another_thread_and_its_panic_comes_back() {
        let here = std::thread::current().id();
        assert_ne!(off_thread(|| std::thread::current().id()).await, here);
        let panicked = tokio::spawn(off_thread(|| std::panic::panic_any("it broke"))).await.unwrap_err();
        assert_eq!(panicked.into_panic().downcast_ref(), Some(&"it broke"));
    }
}
