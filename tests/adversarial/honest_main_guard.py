# Main guard.
# expect: AC

def main():
    print("held")
if __name__ == "__main__":
    main()
