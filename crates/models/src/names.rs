//! The names of a family's weights: which tensors of a checkpoint are which of the layers'. Loading, saving, LoRA and merging share a family's
//! table.
//!
//! Layers are named as in transformers 5. Older checkpoints have other prefixes for the same weights ([`Names::prefixes`]); some hold several
//! weights in one tensor, or one weight in another form ([`Names::reforms`]).

use crate::FAMILIES;

/// The table of a family.
#[derive(Clone, Copy, Debug, Default)]
pub struct Names {
    /// Prefixes of older checkpoints, and what transformers 5 has in their place. The first that fits counts; a name that begins as one of
    /// transformers 5 is left as it is.
    pub prefixes: &'static [(&'static str, &'static str)],
    /// Weights that files hold in another form than layers take them, by their names after [`Names::prefixes`].
    pub reforms: &'static [Reform],
    /// Prefixes of tensors that no layer takes, by their names after [`Names::prefixes`]. They are passed over without a warning and survive a
    /// save.
    pub passed_over: &'static [&'static str],
}

/// Qwen's, of the hub before transformers 5.
pub(crate) const QWEN_NAMES: Names = Names {
    prefixes: &[("visual.", "model.visual."), ("model.", "model.language_model.")],
    reforms: &[],
    passed_over: &[],
};

/// How files hold weights. In patterns `*` is a number, the same on both sides.
#[derive(Clone, Copy, Debug)]
pub enum Reform {
    /// The rows of one stored tensor are those of several weights, in this order.
    Split {
        /// In files.
        stored: &'static str,
        /// In layers.
        own: &'static [&'static str],
    },
    /// The rows of several stored tensors, in this order, are those of one weight.
    Concatenated {
        /// In files.
        stored: &'static [&'static str],
        /// In layers.
        own: &'static str,
    },
    /// A matrix is stored as its transpose.
    Transposed {
        /// In files.
        stored: &'static str,
        /// In layers.
        own: &'static str,
    },
    /// Tensors numbered by `#` from 0 on are the slices of one weight.
    Stacked {
        /// In files.
        stored: &'static str,
        /// In layers.
        own: &'static str,
    },
}

/// Where the numbers of a weight are, by names after [`Names::prefixes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// In the tensor of that name.
    Same,
    /// Rows of `stored`, after those of the weights `before`.
    RowsOf { stored: String, before: Vec<String> },
    /// The rows of these.
    Rows(Vec<String>),
    /// The transpose of this.
    Transposed(String),
    /// A slice each of the tensors `prefix0suffix`, `prefix1suffix`, ...
    Slices([String; 2]),
}

/// What a stored tensor is made of when it is written, by names after [`Names::prefixes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The weight of that name.
    Same,
    /// The rows of these weights.
    Rows(Vec<String>),
    /// Rows of a weight, after those of the stored tensors `before`.
    RowsOf { own: String, before: Vec<String> },
    /// The transpose of a weight.
    Transposed(String),
    /// A slice of a weight.
    Slice { own: String, index: i64 },
}

impl Names {
    /// The name that transformers 5 gives to the layer (or weight) that a checkpoint calls `name`.
    pub fn current(&self, name: &str) -> String {
        if self.prefixes.iter().any(|(_, new)| name.starts_with(new)) {
            return name.to_owned();
        }
        let renamed = self
            .prefixes
            .iter()
            .find_map(|(old, new)| name.strip_prefix(old).map(|rest| format!("{new}{rest}")));
        renamed.unwrap_or_else(|| name.to_owned())
    }

    /// The other names that checkpoints and adapters may have for `current`.
    pub fn older(&self, current: &str) -> Vec<String> {
        let of = |(old, new): &(&str, &str)| {
            current.strip_prefix(new).map(|rest| format!("{old}{rest}"))
        };
        self.prefixes.iter().filter_map(of).collect()
    }

    /// Whether no layer takes the tensor `current`.
    pub fn is_passed_over(&self, current: &str) -> bool {
        self.passed_over.iter().any(|prefix| current.starts_with(prefix))
    }

    /// Where the weight `own` is stored.
    pub(crate) fn source(&self, own: &str) -> Source {
        self.reforms.iter().find_map(|reform| reform.source(own)).unwrap_or(Source::Same)
    }

    /// What the stored tensor `current` is made of.
    pub(crate) fn target(&self, current: &str) -> Target {
        self.reforms.iter().find_map(|reform| reform.target(current)).unwrap_or(Target::Same)
    }
}

/// [`Names::current`] of a layer of an adapter, whose family is not known yet: no name is renamed by one family that another has.
pub(crate) fn current_of_any(name: &str) -> String {
    let is_current = |names: &Names| names.prefixes.iter().any(|(_, new)| name.starts_with(new));
    if FAMILIES.iter().any(|family| is_current(&family.names)) {
        return name.to_owned();
    }
    let renamed = FAMILIES.iter().map(|family| family.names.current(name));
    renamed.into_iter().find(|renamed| renamed != name).unwrap_or_else(|| name.to_owned())
}

/// [`Names::older`] of all families.
pub(crate) fn older_of_any(current: &str) -> Vec<String> {
    FAMILIES.iter().flat_map(|family| family.names.older(current)).collect()
}

impl Target {
    /// The weights that the tensor is made of.
    pub(crate) fn weights(&self) -> Vec<&str> {
        match self {
            Target::Same => Vec::new(),
            Target::Rows(own) => own.iter().map(String::as_str).collect(),
            Target::RowsOf { own, .. } | Target::Transposed(own) | Target::Slice { own, .. } => {
                vec![own]
            }
        }
    }
}

impl Reform {
    fn source(&self, name: &str) -> Option<Source> {
        match self {
            Reform::Split { stored, own } => {
                let (index, numbers) = place(own, name)?;
                let before = own[..index].iter().map(|own| filled(own, &numbers)).collect();
                Some(Source::RowsOf { stored: filled(stored, &numbers), before })
            }
            Reform::Concatenated { stored, own } => {
                let numbers = matched(own, name)?;
                Some(Source::Rows(stored.iter().map(|stored| filled(stored, &numbers)).collect()))
            }
            Reform::Transposed { stored, own } => {
                Some(Source::Transposed(filled(stored, &matched(own, name)?)))
            }
            Reform::Stacked { stored, own } => {
                let stored = filled(stored, &matched(own, name)?);
                let (before, after) = stored.split_once('#')?;
                Some(Source::Slices([before, after].map(str::to_owned)))
            }
        }
    }

    fn target(&self, name: &str) -> Option<Target> {
        match self {
            Reform::Split { stored, own } => {
                let numbers = matched(stored, name)?;
                Some(Target::Rows(own.iter().map(|own| filled(own, &numbers)).collect()))
            }
            Reform::Concatenated { stored, own } => {
                let (index, numbers) = place(stored, name)?;
                let before = stored[..index].iter().map(|name| filled(name, &numbers)).collect();
                Some(Target::RowsOf { own: filled(own, &numbers), before })
            }
            Reform::Transposed { stored, own } => {
                Some(Target::Transposed(filled(own, &matched(stored, name)?)))
            }
            Reform::Stacked { stored, own } => {
                let at =
                    stored.matches('*').count() - stored.split_once('#')?.1.matches('*').count();
                let mut numbers = matched(&stored.replace('#', "*"), name)?;
                let index = numbers.remove(at).parse().ok()?;
                Some(Target::Slice { own: filled(own, &numbers), index })
            }
        }
    }
}

/// Which of `patterns` is `name`, and its numbers.
fn place(patterns: &[&str], name: &str) -> Option<(usize, Vec<String>)> {
    let mut tried = patterns.iter().enumerate();
    tried.find_map(|(index, pattern)| Some((index, matched(pattern, name)?)))
}

/// The numbers that `*` stands for in `name`; `None` where it is not of the pattern.
fn matched(pattern: &str, name: &str) -> Option<Vec<String>> {
    let mut parts = pattern.split('*');
    let mut rest = name.strip_prefix(parts.next()?)?;
    let mut numbers = Vec::new();
    for part in parts {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        if digits == 0 {
            return None;
        }
        numbers.push(rest[..digits].to_owned());
        rest = rest[digits..].strip_prefix(part)?;
    }
    rest.is_empty().then_some(numbers)
}

fn filled(pattern: &str, numbers: &[String]) -> String {
    let mut parts = pattern.split('*');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for (part, number) in parts.zip(numbers) {
        name += number;
        name += part;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Names = Names {
        prefixes: &[("visual.", "model.visual."), ("model.", "model.language_model.")],
        reforms: &[
            Reform::Split {
                stored: "tower.*.qkv.weight",
                own: &["tower.*.q.weight", "tower.*.k.weight", "tower.*.v.weight"],
            },
            Reform::Concatenated {
                stored: &["layer.*.gate.weight", "layer.*.up.weight"],
                own: "layer.*.gate_up.weight",
            },
            Reform::Transposed { stored: "projector", own: "projector.weight" },
            Reform::Stacked { stored: "layer.*.experts.#.w", own: "layer.*.experts" },
        ],
        passed_over: &["mtp."],
    };

    #[test]
    fn prefixes_are_renamed_once() {
        for (stored, current) in [
            ("visual.merger.ln_q.weight", "model.visual.merger.ln_q.weight"),
            ("model.visual.merger.ln_q.weight", "model.visual.merger.ln_q.weight"),
            ("model.layers.0.mlp", "model.language_model.layers.0.mlp"),
            ("model.language_model.layers.0.mlp", "model.language_model.layers.0.mlp"),
            ("lm_head.weight", "lm_head.weight"),
        ] {
            assert_eq!(NAMES.current(stored), current);
        }
        assert_eq!(NAMES.older("model.language_model.norm"), ["model.norm"]);
        assert!(NAMES.is_passed_over("mtp.layers.0"));
    }

    #[test]
    fn sources_and_targets_are_inverse() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            NAMES.source("tower.12.v.weight"),
            Source::RowsOf {
                stored: "tower.12.qkv.weight".into(),
                before: names(&["tower.12.q.weight", "tower.12.k.weight"]),
            }
        );
        assert_eq!(
            NAMES.target("tower.12.qkv.weight"),
            Target::Rows(names(&["tower.12.q.weight", "tower.12.k.weight", "tower.12.v.weight"]))
        );
        assert_eq!(
            NAMES.source("layer.3.gate_up.weight"),
            Source::Rows(names(&["layer.3.gate.weight", "layer.3.up.weight"]))
        );
        assert_eq!(
            NAMES.target("layer.3.up.weight"),
            Target::RowsOf {
                own: "layer.3.gate_up.weight".into(),
                before: names(&["layer.3.gate.weight"]),
            }
        );
        assert_eq!(NAMES.source("projector.weight"), Source::Transposed("projector".into()));
        assert_eq!(NAMES.target("projector"), Target::Transposed("projector.weight".into()));
        assert_eq!(
            NAMES.source("layer.7.experts"),
            Source::Slices(["layer.7.experts.".into(), ".w".into()])
        );
        assert_eq!(
            NAMES.target("layer.7.experts.11.w"),
            Target::Slice { own: "layer.7.experts".into(), index: 11 }
        );
        for plain in ["tower.x.q.weight", "tower.1.q.bias", "layer.7.experts.w"] {
            assert_eq!(NAMES.source(plain), Source::Same, "{plain}");
            assert_eq!(NAMES.target(plain), Target::Same, "{plain}");
        }
    }
}
