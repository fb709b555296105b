use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A piece of the text while it is being merged; pieces form a linked list in text order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Byte offset of its first byte.
    pub start: u32,
    /// Its length in bytes; 0 once it was merged into its left neighbour.
    pub len: u32,
    /// Its token, [`NO_TOKEN`] for a character that is not in the vocabulary.
    pub id: u32,
    prev: u32,
    next: u32,
}

pub(super) const NO_TOKEN: u32 = u32::MAX;
const NO_PIECE: u32 = u32::MAX;

/// A pair that may be merged. The order of fields is the order of merging: lowest rank first, then leftmost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: u32,
    len: u32,
    id: u32,
}

/// Byte-pair merging in O(n log n), with buffers that are reused between words.
#[derive(Default)]
pub(super) struct Merger {
    pieces: Vec<Piece>,
    queue: BinaryHeap<Reverse<Candidate>>,
}

impl Merger {
    /// Forgets the previous word.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.queue.clear();
    }

    /// Appends a piece of the word.
    pub(super) fn push(&mut self, start: usize, len: usize, id: u32) {
        let index = self.pieces.len() as u32;
        if let Some(last) = self.pieces.last_mut() {
            last.next = index;
        }
        let prev = index.checked_sub(1).unwrap_or(NO_PIECE);
        self.pieces.push(Piece { start: start as u32, len: len as u32, id, prev, next: NO_PIECE });
    }

    /// Merges until no pair can be merged. `pair` answers the rank and id of two neighbours' merge.
    pub(super) fn run(&mut self, pair: impl Fn(&Piece, &Piece) -> Option<(u32, u32)>) {
        for left in 0..self.pieces.len().saturating_sub(1) as u32 {
            self.propose(left, &pair);
        }
        while let Some(Reverse(candidate)) = self.queue.pop() {
            let left = self.pieces[candidate.left as usize];
            if left.len == 0 || left.next == NO_PIECE {
                continue;
            }
            let right = self.pieces[left.next as usize];
            // Pieces only grow, so an equal length means that neither side has changed since.
            if left.len + right.len != candidate.len {
                continue;
            }
            self.pieces[left.next as usize].len = 0;
            let merged = &mut self.pieces[candidate.left as usize];
            (merged.len, merged.id, merged.next) = (candidate.len, candidate.id, right.next);
            if right.next != NO_PIECE {
                self.pieces[right.next as usize].prev = candidate.left;
            }
            if left.prev != NO_PIECE {
                self.propose(left.prev, &pair);
            }
            self.propose(candidate.left, &pair);
        }
    }

    fn propose(&mut self, left_index: u32, pair: &impl Fn(&Piece, &Piece) -> Option<(u32, u32)>) {
        let left = &self.pieces[left_index as usize];
        if left.next == NO_PIECE {
            return;
        }
        let right = &self.pieces[left.next as usize];
        if let Some((rank, id)) = pair(left, right) {
            self.queue.push(Reverse(Candidate { rank, left: left_index, len: left.len + right.len, id }));
        }
    }

    /// What is left, in text order.
    pub(super) fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.pieces.iter().filter(|piece| piece.len > 0)
    }
}
