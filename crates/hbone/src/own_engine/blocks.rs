//! The memory that tunnels read into.

use std::cell::RefCell;

use bytes::{Bytes, BytesMut};

/// Size of a block, and the most that is read at once, in bytes.
pub(super) const BLOCK: usize = 256 * 1024;
/// Number of blocks that a thread keeps.
const KEPT: usize = 4;

thread_local! {
    /// The blocks of a thread. Streams may still have parts of them.
    static BLOCKS: RefCell<Vec<Bytes>> = const { RefCell::new(Vec::new()) };
}

/// Returns a block of which no stream has a part.
pub(super) fn take() -> BytesMut {
    let unused = BLOCKS.with_borrow_mut(|blocks| {
        let unused = blocks.iter().position(Bytes::is_unique)?;
        blocks.swap_remove(unused).try_into_mut().ok()
    });
    unused.unwrap_or_else(|| BytesMut::zeroed(BLOCK))
}

/// Keeps a block for further use, as soon as no stream has a part of it.
pub(super) fn put(block: Bytes) {
    BLOCKS.with_borrow_mut(|blocks| {
        if blocks.len() < KEPT {
            blocks.push(block);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_used_again_when_no_part_of_it_is_left() {
        let mut first = take();
        first[7] = 7;
        let first = first.freeze();
        let part = first.slice(7..8);
        let address = first.as_ptr();
        put(first);
        let second = take();
        assert!(second.as_ptr() != address && second.len() == BLOCK);
        assert_eq!(part, [7][..]);
        put(second.freeze());
        drop(part);
        let blocks = [take(), take()];
        assert!(blocks.iter().any(|block| block.as_ptr() == address));
        assert!(blocks.iter().all(|block| block.len() == BLOCK));
        for _ in 0..2 * KEPT {
            put(BytesMut::zeroed(BLOCK).freeze());
        }
        assert_eq!(BLOCKS.with_borrow(Vec::len), KEPT);
    }
}
