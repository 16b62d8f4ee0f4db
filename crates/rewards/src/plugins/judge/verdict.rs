//! The verdict of the judge.

use serde_json::Value;

use super::super::protocol::shortened;

/// The score of a response, and the reply that it came from.
pub(super) fn verdict(body: &str) -> Result<(f64, String), String> {
    let value: Value = serde_json::from_str(body)
        .map_err(|_| format!("the judge's answer is not JSON: `{}`", shortened(body)))?;
    let reply = value["choices"][0]["message"]["content"].as_str();
    let reply = reply.ok_or_else(|| format!("no reply in `{}`", shortened(body)))?;
    Ok((score_of(reply)?, reply.to_owned()))
}

/// The number that a reply is, its thinking left out.
pub(super) fn score_of(reply: &str) -> Result<f64, String> {
    let text = reply.rsplit("</think>").next().unwrap_or(reply).trim();
    text.parse().ok().filter(|score| (0.0..=1.0).contains(score)).ok_or_else(|| {
        let got = shortened(text);
        format!("the judge said `{got}`, expected a number from 0 to 1")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_by_hand() {
        assert_eq!(score_of("1.0"), Ok(1.0));
        assert_eq!(score_of("<think>0 or 1?</think>\n 0 \n"), Ok(0.0));
        assert_eq!(score_of("0.25"), Ok(0.25));
        for bad in ["", "yes", "2", "-1", "nan", "1.0 because"] {
            assert!(score_of(bad).is_err(), "{bad}");
        }
    }
}
