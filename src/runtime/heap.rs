//! The heap of a daemon: one for all threads.
//!
//! glibc gives threads arenas of their own, from which what another thread frees never comes back to the others. Names
//! are made and dropped by whoever is at the engine's wheel, so the memory of a daemon would grow far beyond what it
//! holds (by a fifth of its budgets, measured with a walk of four threads). One arena costs little: answers from memory
//! allocate nothing, and small pieces come from each thread's own cache.
#![allow(unsafe_code, reason = "mallopt(3) is no other way to be had")]

/// Has all threads use one arena. To be called before the second thread starts. Where the C library has no such thing,
/// nothing is done.
pub fn use_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` takes two integers and locks what it changes; an unknown parameter is refused and changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
