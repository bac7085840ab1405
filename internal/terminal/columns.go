package terminal

import (
	"strings"
	"unicode/utf8"
)

// DefaultWidth is how many characters a line of a terminal has where its width is not known.
const DefaultWidth = 80

const (
	columnGap = 2   // spaces between two columns
	minColumn = 8   // characters of a column that is made narrower
	continued = "↳" // begins each further line of a cell
)

// columns lays out lines whose cells have tabs between them, each column as wide as its longest cell. The last cell of a line
// belongs to no column: it takes the rest of the line. Where a line is longer than width, the widest columns are made narrower
// and cells continue below, in their own column. A column is never narrower than minColumn.
func columns(text string, width int) string {
	var rows [][]string
	var widths []int // by column
	last := 0        // the longest cell in the rest of a line, by the columns before it
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		for i, c := range cells[:len(cells)-1] {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
		rows = append(rows, cells)
	}
	for _, cells := range rows {
		if len(cells) == len(widths)+1 { // a table's row; its last cell is a column too
			last = max(last, utf8.RuneCountInString(cells[len(cells)-1]))
		}
	}
	for over := sum(widths) + last - width; over > 0 && len(widths) > 0; over-- {
		if last > maxOf(widths) && last > minColumn {
			last--
			continue
		}
		if maxOf(widths) <= minColumn {
			break
		}
		widths[indexOfMax(widths)]--
	}
	var out strings.Builder
	for _, cells := range rows {
		parts := make([][]string, len(cells))
		height := 1
		at := 0
		for i, c := range cells {
			w := max(width-at, minColumn)
			if i < len(cells)-1 {
				w = widths[i]
				at += w + columnGap
			}
			parts[i] = wrap(c, w)
			height = max(height, len(parts[i]))
		}
		for n := range height {
			var line strings.Builder
			for i := range cells {
				part := ""
				if n < len(parts[i]) {
					part = parts[i][n]
				}
				line.WriteString(part)
				if i < len(cells)-1 {
					line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(part)+columnGap))
				}
			}
			out.WriteString(strings.TrimRight(line.String(), " "))
			out.WriteByte('\n')
		}
	}
	return out.String()
}

// wrap breaks a cell into pieces of at most width characters, after a space, comma or slash where one is in the second half.
// Each piece but the first begins with continued, so that text which others filled in cannot pass for a row or a cell.
func wrap(cell string, width int) []string {
	r := []rune(cell)
	var out []string
	for len(r) > width {
		n := width
		for i := width; i > width/2; i-- {
			if c := r[i-1]; c == ' ' || c == ',' || c == '/' {
				n = i
				break
			}
		}
		out = append(out, strings.TrimRight(string(r[:n]), " "))
		r = r[n:]
		for len(r) > 0 && r[0] == ' ' {
			r = r[1:]
		}
		r = append([]rune(continued), r...)
	}
	return append(out, string(r))
}

func sum(widths []int) (n int) {
	for _, w := range widths {
		n += w + columnGap
	}
	return n
}

func maxOf(widths []int) (n int) {
	for _, w := range widths {
		n = max(n, w)
	}
	return n
}

func indexOfMax(widths []int) (at int) {
	for i, w := range widths {
		if w > widths[at] {
			at = i
		}
	}
	return at
}
