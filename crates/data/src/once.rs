//! Removes repeated ids from lists.

use std::collections::HashMap;
use std::hash::Hash;

/// An item that an id named before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repeat<I> {
    /// The id.
    pub id: I,
    /// Whether the item is another than the one before it.
    pub differs: bool,
}

/// The items, each id once: the last of an id in the place of the first, as pycocotools' index has it. Items without an id all
/// stay.
pub fn once<T: PartialEq, I: Clone + Eq + Hash>(
    items: Vec<T>,
    id: impl Fn(&T) -> Option<I>,
) -> (Vec<T>, Vec<Repeat<I>>) {
    let mut places: HashMap<I, usize> = HashMap::new();
    let (mut kept, mut repeats): (Vec<T>, Vec<Repeat<I>>) = (Vec::new(), Vec::new());
    for item in items {
        let Some(id) = id(&item) else {
            kept.push(item);
            continue;
        };
        match places.get(&id) {
            Some(place) => {
                let differs = kept[*place] != item;
                repeats.push(Repeat { id, differs });
                kept[*place] = item;
            }
            None => {
                places.insert(id, kept.len());
                kept.push(item);
            }
        }
    }
    (kept, repeats)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_an_id_stands_in_the_place_of_the_first() {
        let items = vec![
            (Some(1), 'a'),
            (Some(2), 'b'),
            (None, 'c'),
            (Some(1), 'd'),
            (None, 'c'),
            (Some(2), 'b'),
        ];
        let (kept, repeats) = once(items, |item| item.0);
        assert_eq!(kept, [(Some(1), 'd'), (Some(2), 'b'), (None, 'c'), (None, 'c')]);
        let [first, second] = [(1, true), (2, false)].map(|(id, differs)| Repeat { id, differs });
        assert_eq!(repeats, [first, second]);
    }
}
