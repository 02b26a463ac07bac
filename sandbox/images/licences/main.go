// licences reads folders, one per line, and writes a JSON object: folder -> SPDX licence expression of its licence
// files, as github.com/google/licensecheck recognises them. A folder without one that is recognised is left out.
package main

import (
	"bufio"
	"encoding/json"
	"log"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"

	"github.com/google/licensecheck"
)

var licenceFile = regexp.MustCompile(`(?i)^(un)?(licen[cs]e|copying)`)

// enough of the file must be the licence's own words, as pkg.go.dev asks for
const enough = 75

func main() {
	found := map[string]string{}
	folders := bufio.NewScanner(os.Stdin)
	for folders.Scan() {
		if expression := licences(folders.Text()); expression != "" {
			found[folders.Text()] = expression
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		log.Fatal(err)
	}
}

func licences(folder string) string {
	ids := map[string]bool{}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return ""
	}
	for _, entry := range entries {
		if entry.IsDir() || !licenceFile.MatchString(entry.Name()) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(folder, entry.Name()))
		if err != nil {
			continue
		}
		coverage := licensecheck.Scan(text)
		if coverage.Percent < enough {
			continue
		}
		for _, match := range coverage.Match {
			ids[match.ID] = true
		}
	}
	var all []string
	for id := range ids {
		all = append(all, id)
	}
	sort.Strings(all)
	return strings.Join(all, " AND ")
}
