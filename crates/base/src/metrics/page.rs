//! The tables of metrics in `docs/run-folder.md`, between lines `<!-- metrics: grpo -->` and `<!-- end -->`. A test holds
//! the page to [`TABLE`]; `UPDATE_DOCS=1` makes it write the page.

use super::{Better, COMMANDS, Command, Metric, TABLE};

const END: &str = "<!-- end -->";

/// The tables, by the mark that begins them, and whose metrics they hold.
const TABLES: [(&str, &[Command]); 3] = [
    ("<!-- metrics: grpo and sft -->", COMMANDS),
    ("<!-- metrics: only grpo -->", &[Command::Grpo]),
    ("<!-- metrics: only sft -->", &[Command::Sft]),
];

/// The page with its tables as they should be.
///
/// # Errors
/// Where a mark, or the end after it, is missing.
pub fn with_tables(page: &str) -> Result<String, String> {
    let mut page = page.to_owned();
    for (mark, commands) in TABLES {
        let start = page.find(mark).ok_or_else(|| format!("expected a line `{mark}`"))?;
        let start = start + mark.len();
        let end = page[start..].find(END).ok_or_else(|| format!("no `{END}` after `{mark}`"))?;
        page.replace_range(start..start + end, &format!("\n\n{}\n", table_of(commands)));
    }
    Ok(page)
}

fn table_of(commands: &[Command]) -> String {
    let rows = TABLE.iter().filter(|metric| metric.commands == commands).map(row);
    let head = "| key | unit | better | meaning |\n|---|---|---|---|\n".to_owned();
    std::iter::once(head).chain(rows).collect()
}

fn row(metric: &Metric) -> String {
    let name = metric.name.replace('{', "<").replace('}', ">");
    let better = match metric.better {
        Better::Higher => "higher",
        Better::Lower => "lower",
        Better::Neither => "",
    };
    format!("| `{name}` | {} | {better} | {} |\n", metric.unit.name(), metric.help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_without_marks_is_refused_and_text_around_them_stays() {
        assert!(with_tables("# Metrics").unwrap_err().contains("metrics: grpo and sft"));
        let empty: String = TABLES.map(|(mark, _)| format!("{mark}\nold\n{END}\ntext\n")).concat();
        let page = with_tables(&empty).unwrap();
        assert_eq!(page.matches("\ntext\n").count(), 3);
        assert!(!page.contains("old\n"));
        assert!(page.contains("| `rewards/<reward>` |  | higher | mean of one reward"), "{page}");
        assert_eq!(with_tables(&page).unwrap(), page);
        let unended = TABLES.map(|(mark, _)| mark).concat();
        assert!(with_tables(&unended).unwrap_err().contains("no `<!-- end -->`"));
    }
}
