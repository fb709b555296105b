use crate::{Error, Result};

/// Reads little-endian values from untrusted bytes; every failure names the byte offset.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    /// Offset of the next byte.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// All bytes of the file.
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    fn remaining(&self) -> u64 {
        self.bytes.len().saturating_sub(self.at) as u64
    }

    pub(super) fn corrupt(&self, reason: impl Into<String>) -> Error {
        Error::CorruptGguf { offset: self.at as u64, reason: reason.into() }
    }

    pub(super) fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8]> {
        if len > self.remaining() {
            return Err(self.corrupt(format!("{what} needs {len} bytes, the file has {} more", self.remaining())));
        }
        let taken = &self.bytes[self.at..][..len as usize];
        self.at += len as usize;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut value = [0; N];
        value.copy_from_slice(self.take(N as u64, what)?);
        Ok(value)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `item_size_min` bytes each in the rest of the file.
    pub(super) fn count(&mut self, what: &'static str, limit: u64, item_size_min: u64) -> Result<u64> {
        let start = self.at;
        let count = self.u64(what)?;
        if count > limit {
            return Err(Error::LimitExceeded { what, actual: count, limit });
        }
        // Both factors are below 2^32, by the limits.
        if count * item_size_min > self.remaining() {
            let reason =
                format!("{what} is {count}, which needs more than the {} bytes left in the file", self.remaining());
            return Err(Error::CorruptGguf { offset: start as u64, reason });
        }
        Ok(count)
    }

    /// A length-prefixed UTF-8 string.
    pub(super) fn string(&mut self, what: &'static str, limit: u64) -> Result<&'a str> {
        let len = self.count(what, limit, 1)?;
        let start = self.at;
        std::str::from_utf8(self.take(len, what)?).map_err(|error| Error::CorruptGguf {
            offset: (start + error.valid_up_to()) as u64,
            reason: format!("{what}: invalid UTF-8"),
        })
    }
}
