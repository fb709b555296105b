use edgeweld::pack::Gates;

/// Gates as text: one row per expert, one column per layer, darker for a larger gate; at the end, the mean.
pub(super) fn heat_map(gates: &Gates) -> String {
    let mut text = String::from("router: one row per expert, one column per layer, darker is more; mean at the end\n");
    for (expert, column) in gates.weights.columns().into_iter().enumerate() {
        let mean = column.mean().unwrap_or(0.0);
        text += &format!("{expert:>10} |{}| {:>3.0}%\n", shades(column.iter().copied()), 100.0 * mean);
    }
    text
}

/// One character per value from 0 to 1.
pub(super) fn shades(values: impl IntoIterator<Item = f32>) -> String {
    const SHADES: [char; 5] = [' ', '░', '▒', '▓', '█'];
    values.into_iter().map(|value| SHADES[(value * 4.0).ceil().clamp(0.0, 4.0) as usize]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_gates_are_darker() {
        let weights = ndarray::array![[1.0, 0.0], [0.5, 0.5], [0.1, 0.9]];
        let lines: Vec<_> = heat_map(&Gates { weights }).lines().skip(1).map(str::to_owned).collect();
        assert_eq!(lines, ["         0 |█▒░|  53%", "         1 | ▒█|  47%"]);
    }
}
