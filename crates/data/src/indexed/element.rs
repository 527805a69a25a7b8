//! How a token is stored.

/// The kinds of numbers that tokens are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// One byte.
    U8,
    /// One byte with a sign.
    I8,
    /// Two bytes with a sign.
    I16,
    /// Four bytes with a sign: what large vocabularies are written as.
    I32,
    /// Eight bytes with a sign.
    I64,
    /// Two bytes: what small vocabularies are written as.
    U16,
}

impl Element {
    /// All kinds.
    pub const ALL: [Element; 6] = [Element::U8, Element::I8, Element::I16, Element::I32, Element::I64, Element::U16];

    /// Returns the kind that Megatron-LM writes tokens of a vocabulary as.
    pub fn of_vocabulary(vocab: usize) -> Self {
        // Its own limit, below what two bytes could hold.
        if vocab < 65_500 {
            Element::U16
        } else {
            Element::I32
        }
    }

    /// Returns the code that stands in an index.
    pub fn code(self) -> u8 {
        match self {
            Element::U8 => 1,
            Element::I8 => 2,
            Element::I16 => 3,
            Element::I32 => 4,
            Element::I64 => 5,
            Element::U16 => 8,
        }
    }

    /// Returns the kind with a code, if tokens can be of it: 6 and 7 are floating-point numbers.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|element| element.code() == code)
    }

    /// Returns the kind's name in NumPy.
    pub fn name(self) -> &'static str {
        match self {
            Element::U8 => "uint8",
            Element::I8 => "int8",
            Element::I16 => "int16",
            Element::I32 => "int32",
            Element::I64 => "int64",
            Element::U16 => "uint16",
        }
    }

    /// Returns how many bytes a token takes.
    pub fn bytes(self) -> u64 {
        match self {
            Element::U8 | Element::I8 => 1,
            Element::I16 | Element::U16 => 2,
            Element::I32 => 4,
            Element::I64 => 8,
        }
    }

    /// Returns the largest id that can be stored.
    pub fn largest(self) -> u64 {
        match self {
            Element::U8 => u8::MAX.into(),
            Element::I8 => i8::MAX as u64,
            Element::I16 => i16::MAX as u64,
            Element::I32 => i32::MAX as u64,
            Element::I64 => i64::MAX as u64,
            Element::U16 => u16::MAX.into(),
        }
    }

    /// Appends what whole numbers in bytes are.
    pub(super) fn decode(self, bytes: &[u8], into: &mut Vec<i64>) {
        macro_rules! each {
            ($kind:ty) => {{
                let (numbers, _) = bytes.as_chunks();
                into.extend(numbers.iter().map(|&number| <$kind>::from_le_bytes(number) as i64))
            }};
        }
        match self {
            Element::U8 => each!(u8),
            Element::I8 => each!(i8),
            Element::I16 => each!(i16),
            Element::I32 => each!(i32),
            Element::I64 => each!(i64),
            Element::U16 => each!(u16),
        }
    }

    /// Appends the bytes of ids, none larger than [`Element::largest`].
    pub(super) fn encode(self, ids: &[u32], into: &mut Vec<u8>) {
        for &id in ids {
            let wide = u64::from(id).to_le_bytes();
            into.extend_from_slice(&wide[..self.bytes() as usize]);
        }
    }
}
