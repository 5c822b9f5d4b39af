//! The gateway's turn at the processors. It holds everybody's link and answers people, with little work for each: what agents and
//! builds do on the same machine must not keep it waiting.
//!
//! Linux counts niceness by the thread, and gives a thread's to those that it starts.

use std::io;

use rustix::process::{getpriority_process, setpriority_process};

/// Of a process that nobody has placed, and of what may take its time.
const USUAL: i32 = 0;
/// The gateway's: three times the weight of the usual, as nice(1) has it. It is no right of way.
const GATEWAY: i32 = -5;

/// Places this thread, and those that it starts from now on, before the usual. Where somebody has placed it otherwise it stays
/// there. The niceness that holds.
///
/// # Errors
/// When this process may not: it has neither root's rights nor `RLIMIT_NICE`. Nothing has changed then.
pub fn raise() -> io::Result<i32> {
    let held = niceness()?;
    if held != USUAL {
        return Ok(held);
    }
    setpriority_process(None, GATEWAY)?;
    Ok(GATEWAY)
}

/// Gives up what [`raise`] gave: for a process that works.
///
/// # Errors
/// When the kernel refuses.
pub fn give_up() -> io::Result<()> {
    if niceness()? == GATEWAY {
        setpriority_process(None, USUAL)?;
    }
    Ok(())
}

/// How nice this thread is, from -20 to 19; whoever is nicer waits longer.
///
/// # Errors
/// When the kernel does not say.
pub fn niceness() -> io::Result<i32> {
    Ok(getpriority_process(None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_placed_once_and_only_where_nobody_placed_it() {
        let placed = std::thread::spawn(|| {
            let before = niceness().expect("the kernel says");
            match raise() {
                Ok(held) => {
                    let expected = if before == USUAL { GATEWAY } else { before };
                    assert_eq!((held, niceness().expect("the kernel says")), (expected, expected));
                }
                // Without root's rights it stays.
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
                    assert_eq!(niceness().expect("the kernel says"), before);
                }
            }
            let inherited = std::thread::spawn(niceness).join().expect("it does not panic").expect("the kernel says");
            assert_eq!(inherited, niceness().expect("the kernel says"));
            give_up().expect("anybody may be nicer");
            assert_eq!(niceness().expect("the kernel says"), before);

            setpriority_process(None, 19).expect("anybody may be nicer");
            assert_eq!(raise().expect("it is left alone"), 19);
            give_up().expect("it is left alone");
            assert_eq!(niceness().expect("the kernel says"), 19);
        });
        placed.join().expect("it does not panic");
    }
}
