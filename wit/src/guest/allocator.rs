//! Memory of a running module. An instance lives for one batch and makes many small things that live for one command.
//! The standard library's allocator on Wasm asks the host for memory in every instance, which changes the machine's page
//! tables there and back, and its search for a block costs more than most of what the block is for. Here are lists of
//! free blocks, one list for each size, cut from an arena that is part of the memory that an instance begins with. What
//! is large, and what comes when the arena is used up, is the standard library's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ptr;

/// Small sizes are rounded up to a multiple of this; it is also every block's alignment.
const STEP: usize = 16;
const SMALL_MAX: usize = 1 << 10;
/// The first is that of blocks of no bytes, which nobody asks for: so a size's class is found with one division.
const SMALL_CLASSES: usize = SMALL_MAX / STEP + 1;
/// Larger ones are rounded up to a power of two. Beyond this they are the standard library's.
const BLOCK_MAX: usize = 256 << 10;
const CLASSES: usize = SMALL_CLASSES + (BLOCK_MAX / SMALL_MAX).ilog2() as usize;
/// Enough for a thousand commands of a hundred bytes. A page of it that isn't written costs a look, about a nanosecond.
const ARENA_BYTES: usize = 768 << 10;
/// What is taken from the standard library's allocator when the arena is used up.
const CHUNK_BYTES: usize = BLOCK_MAX;

/// The allocator of every module. All zeros at first, so that the module's file doesn't have the arena.
pub struct Allocator {
    state: UnsafeCell<State>,
    arena: UnsafeCell<Arena>,
}

#[repr(align(16))]
struct Arena(#[expect(dead_code, reason = "used by its address")] MaybeUninit<[u8; ARENA_BYTES]>);

struct State {
    /// The first free block of each size; a free block begins with the address of the next one.
    free: [*mut u8; CLASSES],
    /// What is left of the arena, or of the newest chunk. Null before the first block is cut.
    next: *mut u8,
    bytes_left: usize,
}

// SAFETY: a module has one thread.
unsafe impl Sync for Allocator {}

impl Allocator {
    pub const fn new() -> Self {
        let state = State { free: [ptr::null_mut(); CLASSES], next: ptr::null_mut(), bytes_left: 0 };
        Allocator { state: UnsafeCell::new(state), arena: UnsafeCell::new(Arena(MaybeUninit::uninit())) }
    }

    /// A new block, out of memory that wasn't there before. Null if the instance may have no more.
    #[cold]
    #[inline(never)]
    fn refill(&self, class: usize) -> *mut u8 {
        // SAFETY: nobody else has the state: there is one thread, and System doesn't call back.
        let state = unsafe { &mut *self.state.get() };
        let bytes = block_bytes(class);
        // The rest of the chunk stays for what is smaller.
        if !state.next.is_null() && bytes > CHUNK_BYTES / 8 {
            // SAFETY: as below.
            return unsafe { System.alloc(Layout::from_size_align_unchecked(bytes, STEP)) };
        }
        state.keep_rest();
        let (chunk, length) = if state.next.is_null() {
            (self.arena.get().cast::<u8>(), ARENA_BYTES)
        } else {
            // SAFETY: neither number is zero, and STEP is a power of two.
            (unsafe { System.alloc(Layout::from_size_align_unchecked(CHUNK_BYTES, STEP)) }, CHUNK_BYTES)
        };
        if chunk.is_null() {
            return chunk;
        }
        (state.next, state.bytes_left) = (chunk, length);
        state.cut(bytes)
    }

    /// A block of this class.
    #[inline(always)]
    fn take(&self, class: usize) -> *mut u8 {
        // SAFETY: nobody else has the state: there is one thread.
        let state = unsafe { &mut *self.state.get() };
        let block = state.free[class];
        if block.is_null() {
            let bytes = block_bytes(class);
            return if state.bytes_left < bytes { self.refill(class) } else { state.cut(bytes) };
        }
        // SAFETY: a free block begins with the address of the next one.
        state.free[class] = unsafe { block.cast::<*mut u8>().read() };
        block
    }

    /// # Safety
    /// It is a block of this class, and nobody uses it any more.
    #[inline(always)]
    unsafe fn give(&self, block: *mut u8, class: usize) {
        // SAFETY: there is one thread; the block is free from here on, and has room for an address.
        let state = unsafe { &mut *self.state.get() };
        unsafe { block.cast::<*mut u8>().write(state.free[class]) };
        state.free[class] = block;
    }

    /// What isn't small is kept out of the way of what is.
    ///
    /// # Safety
    /// As of `GlobalAlloc`.
    #[cold]
    #[inline(never)]
    unsafe fn alloc_large(&self, layout: Layout) -> *mut u8 {
        match class(layout) {
            Some(class) => self.take(class),
            None => unsafe { System.alloc(layout) },
        }
    }

    /// # Safety
    /// As of `GlobalAlloc`.
    #[cold]
    #[inline(never)]
    unsafe fn dealloc_large(&self, block: *mut u8, layout: Layout) {
        match class(layout) {
            Some(class) => unsafe { self.give(block, class) },
            None => unsafe { System.dealloc(block, layout) },
        }
    }
}

#[cfg(target_arch = "wasm32")]
impl Allocator {
    /// An empty list with room for so many. `Vec::with_capacity` asks the global allocator through two functions that the
    /// compiler doesn't inline, which costs a module as much as the block.
    ///
    /// # Safety
    /// This is the global allocator: lists give their blocks back to that.
    #[inline(always)]
    pub unsafe fn vec<T>(&'static self, capacity: usize) -> Vec<T> {
        let Ok(layout) = Layout::array::<T>(capacity) else { return Vec::with_capacity(capacity) };
        if layout.size() == 0 {
            return Vec::new();
        }
        // SAFETY: the size isn't zero.
        let block = unsafe { self.alloc(layout) };
        if block.is_null() {
            std::alloc::handle_alloc_error(layout);
        }
        // SAFETY: the block has room for so many; that it is the list's allocator's, the caller promises.
        unsafe { Vec::from_raw_parts(block.cast(), 0, capacity) }
    }
}

impl State {
    /// A block of so many bytes, which are left.
    #[inline(always)]
    fn cut(&mut self, bytes: usize) -> *mut u8 {
        let block = self.next;
        self.next = block.wrapping_add(bytes);
        self.bytes_left -= bytes;
        block
    }

    /// What is left of a chunk becomes free blocks, the largest first.
    fn keep_rest(&mut self) {
        while self.bytes_left >= STEP {
            let small = self.bytes_left < 2 * SMALL_MAX;
            let class = if small {
                self.bytes_left.min(SMALL_MAX) / STEP
            } else {
                (SMALL_CLASSES + (self.bytes_left / SMALL_MAX).ilog2() as usize - 1).min(CLASSES - 1)
            };
            // SAFETY: so many bytes are left, and nobody else has them.
            unsafe { self.next.cast::<*mut u8>().write(self.free[class]) };
            self.free[class] = self.next;
            self.next = self.next.wrapping_add(block_bytes(class));
            self.bytes_left -= block_bytes(class);
        }
    }
}

/// Its list is known without a search.
#[inline(always)]
fn is_small(layout: Layout) -> bool {
    layout.size() <= SMALL_MAX && layout.align() <= STEP
}

/// The list that blocks of this layout are in, `None` if they are the standard library's.
fn class(layout: Layout) -> Option<usize> {
    let bytes = layout.size();
    if layout.align() > STEP || bytes > BLOCK_MAX {
        None
    } else if bytes <= SMALL_MAX {
        Some(bytes.div_ceil(STEP))
    } else {
        Some(SMALL_CLASSES + ((bytes - 1) / SMALL_MAX).ilog2() as usize)
    }
}

const fn block_bytes(class: usize) -> usize {
    if class < SMALL_CLASSES { class * STEP } else { (SMALL_MAX * 2) << (class - SMALL_CLASSES) }
}

// SAFETY: a block is at least as large as what its class is for, and aligned to STEP; it is in its class's list only
// while it is free, and a layout's class is the same each time. Everything else is System's.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        debug_assert_ne!(layout.size(), 0);
        if is_small(layout) { self.take(layout.size().div_ceil(STEP)) } else { unsafe { self.alloc_large(layout) } }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if is_small(layout) {
            unsafe { self.give(block, layout.size().div_ceil(STEP)) };
        } else {
            unsafe { self.dealloc_large(block, layout) };
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the caller promises that the new size, rounded up, is no overflow.
        let new = unsafe { Layout::from_size_align_unchecked(bytes, layout.align()) };
        match (class(layout), class(new)) {
            (None, None) => unsafe { System.realloc(block, layout, bytes) },
            (old, new) if old == new => block,
            _ => unsafe {
                let moved = self.alloc(new);
                if !moved.is_null() {
                    ptr::copy_nonoverlapping(block, moved, layout.size().min(bytes));
                    self.dealloc(block, layout);
                }
                moved
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_block_is_as_large_as_any_layout_of_its_class() {
        for bytes in (1..=2 * SMALL_MAX).chain([BLOCK_MAX / 2, BLOCK_MAX / 2 + 1, BLOCK_MAX - 1, BLOCK_MAX]) {
            let class = class(Layout::from_size_align(bytes, STEP).unwrap()).unwrap();
            assert!(class < CLASSES && block_bytes(class) >= bytes, "{bytes} bytes in class {class}");
            assert!(block_bytes(class).is_multiple_of(STEP) && block_bytes(class) <= CHUNK_BYTES);
        }
        assert_eq!(class(Layout::from_size_align(BLOCK_MAX + 1, 1).unwrap()), None);
        assert_eq!(class(Layout::from_size_align(1, STEP * 2).unwrap()), None);
    }

    #[test]
    fn the_rest_of_a_chunk_is_used() {
        let allocator = Box::new(Allocator::new());
        for rest in [16, 32, 1_008, 1_024, 1_040, 2_032, 2_048, 2_064, 65_552, BLOCK_MAX - 16] {
            let mut chunk = vec![0_u128; rest / STEP];
            let state = unsafe { &mut *allocator.state.get() };
            (state.next, state.bytes_left) = (chunk.as_mut_ptr().cast(), rest);
            state.keep_rest();
            assert_eq!(state.bytes_left, 0, "of {rest}");
            let (mut bytes, range) = (0, chunk.as_mut_ptr_range());
            for class in 0..CLASSES {
                while !state.free[class].is_null() {
                    let block = state.free[class];
                    assert!(range.contains(&block.cast()) && (block as usize).is_multiple_of(STEP));
                    state.free[class] = unsafe { block.cast::<*mut u8>().read() };
                    bytes += block_bytes(class);
                }
            }
            assert_eq!(bytes, rest);
        }
    }

    /// Blocks that are held, each full of bytes of its own.
    struct Held(Vec<(*mut u8, Layout, u8)>);

    impl Held {
        fn check(&self) {
            for (block, layout, byte) in &self.0 {
                assert_eq!(*block as usize % layout.align(), 0);
                let bytes = unsafe { std::slice::from_raw_parts(*block, layout.size()) };
                assert!(bytes.iter().all(|b| b == byte), "another block is at the same place");
            }
        }
    }

    fn sizes() -> impl Strategy<Value = usize> {
        prop_oneof![6 => 1..200_usize, 2 => 1..5_000_usize, 1 => 1..300_000_usize]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_two_blocks_overlap(steps in prop::collection::vec((0..4_u8, sizes(), 0..6_u32, any::<prop::sample::Index>()), 1..200)) {
            let allocator = Box::new(Allocator::new());
            let mut held = Held(Vec::new());
            for (at, (what, bytes, align, which)) in steps.into_iter().enumerate() {
                let byte = at as u8;
                if what < 2 || held.0.is_empty() {
                    let layout = Layout::from_size_align(bytes, 1 << align).unwrap();
                    let block = unsafe { allocator.alloc(layout) };
                    unsafe { block.write_bytes(byte, bytes) };
                    held.0.push((block, layout, byte));
                } else {
                    let (block, layout, byte) = held.0.swap_remove(which.index(held.0.len()));
                    if what == 2 {
                        unsafe { allocator.dealloc(block, layout) };
                    } else {
                        let block = unsafe { allocator.realloc(block, layout, bytes) };
                        let kept = layout.size().min(bytes);
                        assert!(unsafe { std::slice::from_raw_parts(block, kept) }.iter().all(|b| *b == byte));
                        unsafe { block.write_bytes(byte, bytes) };
                        held.0.push((block, Layout::from_size_align(bytes, layout.align()).unwrap(), byte));
                    }
                }
                held.check();
            }
            for (block, layout, _) in held.0 {
                unsafe { allocator.dealloc(block, layout) };
            }
        }
    }
}
