//! Work on several files, or parts of one, at a time.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

/// Runs the same work on every item on at most `streams` threads. After an error nothing more is begun; the first error
/// is the result.
pub fn for_each<T: Sync, E: Send>(
    streams: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    if streams <= 1 || items.len() <= 1 {
        return items.iter().try_for_each(work);
    }
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let lock = || failed.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..streams.min(items.len()) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = work(item) {
                        next.store(items.len(), Ordering::Relaxed);
                        lock().get_or_insert(error);
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_done_once_or_an_error_ends_it() {
        for streams in [0, 1, 2, 7, 100] {
            let items: Vec<usize> = (0..50).collect();
            let done: Vec<AtomicUsize> = items.iter().map(|_| AtomicUsize::new(0)).collect();
            let all: Result<(), ()> = for_each(streams, &items, |at| {
                done[*at].fetch_add(1, Ordering::Relaxed);
                Ok(())
            });
            assert!(all.is_ok() && done.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{streams}");
            let some = for_each(streams, &items, |at| if *at == 20 { Err(*at) } else { Ok(()) });
            assert_eq!(some, Err(20), "{streams}");
        }
    }
}
