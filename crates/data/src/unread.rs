//! Unread keys of a row that look like mistakes: images under another name, typos, and keys of other trainers' rows. Other
//! extra columns are left alone.

use serde_json::{Map, Value};
use strsim::osa_distance;

/// The keys that a command reads.
#[derive(Clone, Copy, Debug)]
pub struct ReadKeys {
    /// The key that names images.
    pub image: &'static str,
    /// The other keys.
    pub others: &'static [&'static str],
    /// Whether a model is asked by it, so that turns and settings of other trainers mean something.
    pub is_asked: bool,
}

impl ReadKeys {
    /// Of rows to train on and to evaluate.
    pub const TRAINING: Self =
        Self { image: "image", others: &["conversations", "accu_reward_method"], is_asked: true };
}

/// Why an unread key is worth a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// It holds images.
    Image,
    /// It holds films or sounds.
    OtherMedia,
    /// It is nearly this key, which is read.
    Near(&'static str),
    /// It changes what question and answer mean.
    Meaning,
}

/// A key that is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadKey {
    /// The key, as a path.
    pub key: String,
    /// Why it is worth a warning.
    pub why: Why,
}

/// Names of images, and of what is no image and may not be dropped either.
const IMAGES: &str =
    "image images img imgs picture pictures pic pics photo photos screenshot screenshots frames";
const OTHER_MEDIA: &str = "video videos clip clips audio audios";
/// Words beside these names that leave them images: `image_path`, but not `image_id`.
const OF_FILES: &str = "path paths file files filename filenames filepath filepaths name names url urls uri uris bytes \
    base b data list input inputs src abs absolute rel relative full local raw left right pil a";
/// What rows of LLaMA-Factory, ms-swift and TRL say that changes what is to be learned.
const MEANINGS: &str = "messages dialog dialogue system system_prompt tools functions history chosen rejected \
    rejected_response rejected_messages rejected_images positive_messages negative_messages kto_tag \
    reasoning_content loss loss_scale tool_calls function_call mask_history";
/// The same in a turn.
const TURN_MEANINGS: &str =
    "reasoning_content thinking tool_calls function_call loss loss_scale weight train";
/// Other names of keys that are read.
const SYNONYMS: [(&str, &str); 10] = [
    ("messages", "conversations"),
    ("dialog", "conversations"),
    ("dialogue", "conversations"),
    ("reward_method", "accu_reward_method"),
    ("question", "problem"),
    ("query", "prompt"),
    ("question", "prompt"),
    ("problem", "prompt"),
    ("response", "completion"),
    ("answer", "solution"),
];
/// Ends of names of image files.
const EXTENSIONS: &str = ".jpg .jpeg .png .webp .gif .bmp .tif .tiff .heic .avif";

/// What a row holds that `read` does not read.
pub fn unread_keys(columns: &Map<String, Value>, read: &ReadKeys) -> Vec<UnreadKey> {
    let shown = columns.get(read.image).map(names_in).unwrap_or_default();
    let mut unread = Vec::new();
    for (key, value) in columns {
        let is_read = key == read.image || read.others.contains(&key.as_str());
        if is_read && key == "conversations" {
            for turn in value.as_array().into_iter().flatten() {
                unread_of_turn(turn, &shown, &mut unread);
            }
        }
        if is_read || !has_content(value) {
            continue;
        }
        if let Some(why) = why(key, value, &shown, columns, read) {
            unread.push(UnreadKey { key: key.clone(), why });
        }
    }
    unread
}

/// The first image, film or sound of a row that is read as one without images.
pub fn hidden_media(columns: &Map<String, Value>, read: &ReadKeys) -> Option<UnreadKey> {
    if columns.get(read.image).is_some_and(has_content) {
        return None;
    }
    let unread = unread_keys(columns, read).into_iter();
    unread
        .filter(|found| matches!(found.why, Why::Image | Why::OtherMedia))
        .min_by_key(|found| found.why)
}

/// The key that was meant where `key` is missing.
pub fn meant(key: &str, columns: &Map<String, Value>) -> Option<String> {
    let with_content = columns.iter().filter(|(_, value)| has_content(value));
    let names = with_content.map(|(name, _)| name);
    names
        .filter(|name| is_near(name, key) || is_synonym(name, key))
        .min_by_key(|name| osa_distance(name, key))
        .cloned()
}

fn why(
    key: &str,
    value: &Value,
    shown: &[String],
    columns: &Map<String, Value>,
    read: &ReadKeys,
) -> Option<Why> {
    match media_of(key, value) {
        Some(Why::Image) if are_shown(value, shown) => return None,
        // Where on the web the images came from that are shown.
        Some(Why::Image) if !shown.is_empty() && are_addresses(value) => return None,
        Some(why) => return Some(why),
        None if shown.is_empty() && is_image_file(key, value) => return Some(Why::Image),
        None => {}
    }
    let is_missing = |name: &&&str| !columns.get(**name).is_some_and(has_content);
    let missing = || read.others.iter().filter(is_missing);
    if let Some(near) = missing().find(|name| is_near(key, name)) {
        return Some(Why::Near(near));
    }
    let is_meant = |name: &&&str| read.is_asked && is_synonym(key, name);
    if let Some(near) = missing().find(is_meant) {
        return Some(Why::Near(near));
    }
    let names = is_among(MEANINGS, &key.to_lowercase());
    (read.is_asked && names && changes_meaning(value)).then_some(Why::Meaning)
}

fn unread_of_turn(turn: &Value, shown: &[String], unread: &mut Vec<UnreadKey>) {
    for (key, value) in turn.as_object().into_iter().flatten() {
        if key == "from" || key == "value" || !has_content(value) {
            continue;
        }
        let why = match media_of(key, value) {
            Some(Why::Image) if are_shown(value, shown) => None,
            Some(why) => Some(why),
            None => {
                let names = is_among(TURN_MEANINGS, &key.to_lowercase());
                (names && changes_meaning(value)).then_some(Why::Meaning)
            }
        };
        let key = format!("conversations[].{key}");
        if let Some(why) = why.filter(|_| unread.iter().all(|known| known.key != key)) {
            unread.push(UnreadKey { key, why });
        }
    }
}

/// Whether a column holds media, by its name or its value.
fn media_of(key: &str, value: &Value) -> Option<Why> {
    if !matches!(value, Value::String(_) | Value::Array(_) | Value::Object(_)) {
        return None;
    }
    match named_media(key) {
        Some(why) => holds_files(value).then_some(why),
        None => media_part(value),
    }
}

/// Whether a column holds media by its name.
pub(crate) fn named_media(key: &str) -> Option<Why> {
    let words = words(key);
    let is_noun = |word: &String| is_among(IMAGES, word) || is_slip(word);
    let of_files = |word: &String| is_among(OF_FILES, word);
    if words.iter().any(is_noun) && words.iter().all(|word| is_noun(word) || of_files(word)) {
        return Some(Why::Image);
    }
    let is_other = |word: &String| is_among(OTHER_MEDIA, word);
    if words.iter().any(is_other) && words.iter().all(|word| is_other(word) || of_files(word)) {
        return Some(Why::OtherMedia);
    }
    None
}

/// A name of images misspelt: `iamge`, `imags`.
fn is_slip(word: &str) -> bool {
    word.len() >= 4
        && word != "mage"
        && word != "imagen"
        && ["image", "images"].iter().any(|name| osa_distance(word, name) == 1)
}

/// Whether `word` is one of the `words`.
fn is_among(words: &str, word: &str) -> bool {
    words.split(' ').any(|other| other == word)
}

/// The words of a key, lower case, without numbers: `imagePath_2` is `image`, `path`.
fn words(key: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut after_small = false;
    for c in key.chars() {
        let starts_word = c.is_uppercase() && after_small;
        if (!c.is_alphabetic() || starts_word) && words.last().is_some_and(|w| !w.is_empty()) {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| c.is_alphabetic()) {
            word.extend(c.to_lowercase());
        }
        after_small = c.is_lowercase();
    }
    words.retain(|word| !word.is_empty());
    // Written together: `imagepath`.
    let nouns = IMAGES.split(' ').chain(OTHER_MEDIA.split(' '));
    let split = |word: String| -> Vec<String> {
        let mut nouns = nouns.clone();
        let rest = nouns.find_map(|noun| {
            let rest = word.strip_prefix(noun)?;
            is_among(OF_FILES, rest).then_some((noun, rest))
        });
        match rest {
            Some((noun, rest)) => vec![noun.to_owned(), rest.to_owned()],
            None => vec![word],
        }
    };
    words.into_iter().flat_map(split).collect()
}

/// Whether texts, bytes or objects stand there, which may be files: a list of numbers is none.
fn holds_files(value: &Value) -> bool {
    match value {
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(items) => items.iter().any(holds_files),
        Value::Object(_) => has_content(value),
        _ => false,
    }
}

/// Images and films in the parts of a chat: `{"type": "image", ...}`, `{"bytes": ..., "path": ...}`.
fn media_part(value: &Value) -> Option<Why> {
    match value {
        Value::Array(items) => items.iter().filter_map(media_part).min(),
        Value::Object(object) => {
            let of_type = match object.get("type").and_then(Value::as_str) {
                Some("image" | "image_url" | "input_image") => Some(Why::Image),
                Some("video" | "video_url" | "audio" | "input_audio" | "audio_url") => {
                    Some(Why::OtherMedia)
                }
                _ => None,
            };
            let is_file = object.contains_key("bytes") && object.contains_key("path");
            let own = of_type.or(is_file.then_some(Why::Image));
            let inner = object.get("content").and_then(media_part);
            own.into_iter().chain(inner).min()
        }
        Value::String(text) if text.starts_with("data:image/") => Some(Why::Image),
        _ => None,
    }
}

/// The texts in a value, which name files.
fn names_in(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => items.iter().flat_map(names_in).collect(),
        Value::Object(object) => object.get("path").map(names_in).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// Whether all files of a value are among those that are read: the same, or in a folder of the other.
fn are_shown(value: &Value, shown: &[String]) -> bool {
    let tail = |text: &str| -> Vec<String> {
        let parts = text.trim_start_matches("file://").split(['/', '\\']);
        let parts = parts.filter(|part| !part.is_empty() && *part != ".");
        parts.rev().map(str::to_owned).collect()
    };
    let is_shown = |name: &String| {
        let name = tail(name);
        shown.iter().any(|other| {
            let other = tail(other);
            name.len().min(other.len()) > 0 && name.iter().zip(&other).all(|(a, b)| a == b)
        })
    };
    let names = names_in(value);
    !names.is_empty() && names.iter().all(is_shown)
}

/// Whether anything is said: no null, no empty text, list or object.
pub(crate) fn has_content(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(items) => items.iter().any(has_content),
        Value::Object(object) => object.values().any(has_content),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

/// A weight of 1 and a loss that counts say what holds anyway; so does an empty list written as text.
pub(crate) fn changes_meaning(value: &Value) -> bool {
    match value {
        Value::Bool(counts) => !counts,
        Value::Number(weight) => weight.as_f64() != Some(1.0),
        Value::String(text) => !matches!(text.trim(), "" | "[]" | "{}" | "null" | "None"),
        value => has_content(value),
    }
}

/// Whether `key` is `name` but for case, marks between words, a plural or a slip.
fn is_near(key: &str, name: &str) -> bool {
    let plain = |text: &str| -> String {
        let letters = text.chars().filter(|c| c.is_alphanumeric());
        letters.flat_map(char::to_lowercase).collect()
    };
    let allowed = match name.chars().count() {
        0..=4 => 0,
        5..=8 => 1,
        _ => 2,
    };
    key != name
        && (plain(key) == plain(name)
            || (plain(key).starts_with(&plain(name)[..1])
                && osa_distance(&key.to_lowercase(), name) <= allowed))
}

fn is_synonym(key: &str, name: &str) -> bool {
    let key = key.to_lowercase();
    SYNONYMS.iter().any(|(other, own)| *other == key && *own == name)
}

/// Whether all texts of a value are addresses on the web.
fn are_addresses(value: &Value) -> bool {
    let names = names_in(value);
    let is_address = |name: &String| name.starts_with("http://") || name.starts_with("https://");
    !names.is_empty() && names.iter().all(is_address)
}

/// Whether a column of files, `path` or `file_name`, names images. An address under `url` may be of anything.
fn is_image_file(key: &str, value: &Value) -> bool {
    let words = words(key);
    let is_link = words.iter().all(|word| is_among("url urls uri uris src", word));
    if is_link && are_addresses(value) {
        return false;
    }
    let ends_like_one = |name: &String| {
        let name = name.to_lowercase();
        EXTENSIONS.split(' ').any(|end| name.ends_with(end))
    };
    !words.is_empty()
        && words.iter().all(|word| is_among(OF_FILES, word))
        && names_in(value).iter().any(ends_like_one)
}

impl UnreadKey {
    /// What is odd about it, beside the images or the text that are read.
    pub fn text(&self, read: &ReadKeys) -> String {
        let (key, image) = (&self.key, read.image);
        match self.why {
            Why::Image => format!("`{key}` holds other images than `{image}`, and is not read"),
            Why::OtherMedia => format!("`{key}` is not read: rows show images only"),
            Why::Near(name) => format!("`{key}` is not read, but `{name}` is"),
            Why::Meaning => {
                format!("`{key}` is not read, though it changes what is asked or taught")
            }
        }
    }

    /// What is wrong with a row that has nothing else to show.
    pub fn text_of_blind_row(&self, image: &str) -> String {
        let key = &self.key;
        match self.why {
            Why::OtherMedia => format!("`{key}` is not read: rows show images only"),
            _ => format!("`{key}` holds images but is not read, and there is no `{image}`"),
        }
    }

    /// The way out.
    pub fn hint(&self, read: &ReadKeys) -> String {
        let image = read.image;
        let converted = match read.others.contains(&"conversations") {
            true => "; `vlm-r1 data convert` makes rows of other forms",
            false => "",
        };
        match self.why {
            Why::Image => format!("name the files of all images in `{image}`{converted}"),
            Why::OtherMedia => "leave such rows out, or name images of them".to_owned(),
            Why::Near(name) => format!("rename it to `{name}`{converted}"),
            Why::Meaning => "write it into question or answer, or leave such rows out".to_owned(),
        }
    }
}

#[cfg(test)]
#[path = "unread_tests.rs"]
mod tests;
