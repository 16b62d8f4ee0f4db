//! `rank_pattern` and `alpha_pattern` of an adapter: layers with a rank or an alpha of their own.
//!
//! Source: huggingface/peft v0.18, `utils/other.py`, `get_pattern_key`.

use regex::Regex;
use serde_json::Value;

use crate::names::older_of_any;

/// The values of single layers, and what all others have.
#[derive(Debug)]
pub(super) struct Patterns {
    rank: Vec<(Regex, f64)>,
    alpha: Vec<(Regex, f64)>,
    lora_alpha: f64,
    /// Rank-stabilised adapters divide by the root of the rank.
    is_stabilised: bool,
}

impl Patterns {
    /// Reads them from `adapter_config.json`.
    ///
    /// # Errors
    /// A pattern that is no expression, a value that is no number above 0.
    pub(super) fn read(config: &Value, lora_alpha: f64) -> Result<Self, String> {
        let rank = values(config, "rank_pattern")?;
        if let Some((_, rank)) = rank.iter().find(|(_, rank)| rank.fract() != 0.0) {
            return Err(format!("`rank_pattern`: expected ranks, got {rank}"));
        }
        Ok(Self {
            rank,
            alpha: values(config, "alpha_pattern")?,
            lora_alpha,
            is_stabilised: config["use_rslora"] == Value::Bool(true),
        })
    }

    /// The rank of a layer that has its own.
    pub(super) fn rank_of(&self, module: &str) -> Option<i64> {
        first(&self.rank, module).map(|rank| rank as i64)
    }

    /// The alpha of a layer of that rank, or of those without their own.
    pub(super) fn alpha_of(&self, module: Option<&str>, rank: i64) -> f64 {
        let own = module.and_then(|module| first(&self.alpha, module));
        let alpha = own.unwrap_or(self.lora_alpha);
        match self.is_stabilised {
            true => alpha * (rank as f64).sqrt(),
            false => alpha,
        }
    }
}

/// The value of the first pattern that means the layer, by its name in transformers 5 or on the hub.
fn first(patterns: &[(Regex, f64)], module: &str) -> Option<f64> {
    let older = older_of_any(module);
    let meant =
        |regex: &Regex| regex.is_match(module) || older.iter().any(|older| regex.is_match(older));
    patterns.iter().find(|(regex, _)| meant(regex)).map(|(_, value)| *value)
}

fn values(config: &Value, key: &str) -> Result<Vec<(Regex, f64)>, String> {
    let object = match &config[key] {
        Value::Null => return Ok(Vec::new()),
        Value::Object(object) => object,
        other => return Err(format!("`{key}`: expected an object, got {other}")),
    };
    let read = |(pattern, value): (&String, &Value)| {
        let regex = Regex::new(&format!(r"^(?:(?:.*\.)?(?:{pattern}))$"));
        let regex = regex.map_err(|error| format!("`{key}`: `{pattern}`: {error}"))?;
        let number = value.as_f64().filter(|number| *number > 0.0 && *number < 1e9);
        match number {
            Some(number) => Ok((regex, number)),
            None => Err(format!("`{key}.{pattern}`: expected a number above 0, got {value}")),
        }
    };
    object.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const Q: &str = "model.language_model.layers.1.self_attn.q_proj";

    #[test]
    fn the_first_pattern_that_means_a_layer_counts() {
        for (pattern, is_meant) in [
            ("q_proj", true),
            ("proj", false),
            ("self_attn.q_proj", true),
            ("layers.1.self_attn.q_proj", true),
            ("layers.0.self_attn.q_proj", false),
            (Q, true),
            ("model.layers.1.self_attn.q_proj", true),
            (r"^model.layers.1.*", true),
            (r"layers.\d.self_attn.[qk]_proj", true),
        ] {
            let config = json!({"rank_pattern": {"v_proj": 2, pattern: 4, "[q]_proj": 9}});
            let patterns = Patterns::read(&config, 16.0).unwrap();
            let expected = if is_meant { 4 } else { 9 };
            assert_eq!(patterns.rank_of(Q), Some(expected), "{pattern}");
        }
    }

    #[test]
    fn alphas_are_those_of_the_layer_and_of_its_rank() {
        let mut config = json!({"alpha_pattern": {"q_proj": 8.0}});
        let patterns = Patterns::read(&config, 16.0).unwrap();
        assert_eq!((patterns.alpha_of(Some(Q), 4), patterns.alpha_of(None, 4)), (8.0, 16.0));
        config["use_rslora"] = json!(true);
        let patterns = Patterns::read(&config, 16.0).unwrap();
        assert_eq!((patterns.alpha_of(Some(Q), 4), patterns.alpha_of(None, 16)), (16.0, 64.0));
        for bad in [json!({"q_proj": 0}), json!({"q_proj": "a"}), json!([1]), json!({"(": 1})] {
            assert!(Patterns::read(&json!({"alpha_pattern": bad}), 1.0).is_err(), "{bad}");
        }
        assert!(Patterns::read(&json!({"rank_pattern": {"q_proj": 1.5}}), 1.0).is_err());
    }
}
