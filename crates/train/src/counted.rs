//! Numbers with their nouns, for messages.

use std::fmt::Display;

/// Writes a number with its noun, which gets an s, or es behind ch, unless there is one of them.
///
/// # Examples
/// ```
/// use mp_train::counted::counted;
///
/// assert_eq!([counted(1, "rank"), counted(2, "rank"), counted(3, "batch")], ["1 rank", "2 ranks", "3 batches"]);
/// ```
pub fn counted(number: impl Display, noun: &str) -> String {
    let number = number.to_string();
    let ending = match noun {
        _ if number == "1" => "",
        noun if noun.ends_with("ch") => "es",
        _ => "s",
    };
    format!("{number} {noun}{ending}")
}
