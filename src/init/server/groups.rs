//! Removal of control groups.

use crate::arch::nr;
use crate::sys::*;

/// Removes a sandbox's group, with those of commands that the host did not get to.
pub fn remove_with_commands(home: i32, group: u64) -> Result<usize> {
    let removed = remove_directory(home, b"box-", group);
    if removed != Err(EBUSY) {
        return removed;
    }
    let name = numbered(b"box-", group);
    let directory = call(nr::OPENAT, [home as usize, name.as_ptr() as usize, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0, 0, 0])?;
    remove_below(directory as i32, false);
    close(directory as i32);
    remove_directory(home, b"box-", group)
}

/// Removes the directories in `parent` and, if they are `nested`, those in them first.
pub fn remove_below(parent: i32, nested: bool) {
    let _ = each_name(parent, &mut [0u64; 512], |name| {
        // Only directories can be; files aren't.
        let remove = || call(nr::UNLINKAT, [parent as usize, name.as_ptr() as usize, AT_REMOVEDIR, 0, 0, 0]);
        if remove() == Err(EBUSY) && nested {
            let flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
            if let Ok(directory) = call(nr::OPENAT, [parent as usize, name.as_ptr() as usize, flags, 0, 0, 0]) {
                remove_below(directory as i32, false);
                close(directory as i32);
                let _ = remove();
            }
        }
        Ok(())
    });
}

/// rmdir of `<prefix><number>`.
pub fn remove_directory(parent: i32, prefix: &[u8], number: u64) -> Result<usize> {
    call(nr::UNLINKAT, [parent as usize, numbered(prefix, number).as_ptr() as usize, AT_REMOVEDIR, 0, 0, 0])
}

/// `<prefix><number>` and a NUL.
pub fn numbered(prefix: &[u8], number: u64) -> [u8; 40] {
    let mut name = [0u8; 40];
    let mut digits = [0u8; 20];
    let (mut i, mut rest) = (digits.len(), number);
    loop {
        i -= 1;
        digits[i] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    for (place, byte) in name.iter_mut().zip(prefix.iter().chain(&digits[i..])) {
        *place = *byte;
    }
    name
}
