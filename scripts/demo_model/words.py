"""Word lists of the demo model's generator: plain data, written by hand for this project."""

from __future__ import annotations


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _split("""
Ada Adam Alan Alba Alex Alice Amara Amir Amy Ana Anders Andrea Anna Anton Arjun Astrid Aylin Barbara Bashir Bea Ben
Bianca Bjorn Bob Boris Bruno Carla Carlos Carol Chen Chiara Chloe Clara Claude Colin Cora Dana Daniel Dario David
Deniz Diana Diego Dmitri Dora Edgar Edith Elena Eli Elias Ella Emil Emily Emma Enzo Erik Esra Esther Eva Farah Fatima
Felix Fiona Flora Frank Frida Gabriel Gina Giulia Grace Greta Guido Hana Hanna Harald Hassan Heidi Helen Henry Hiro
Hugo Ida Igor Ilse Ines Ingrid Irene Iris Isaac Ivan Jack Jacob Jade James Jan Jana Jasmin Jean Jeff Jenny Jim Joe
Johan John Jonas Jose Joy Juan Judith Julia Jun Kai Karen Karim Karl Kate Kenji Kim Kira Klaus Lara Lars Laura Lea
Leila Lena Leo Liam Lina Linus Lisa Liu Lola Luca Lucy Luis Luna Mai Malik Manuel Marco Maria Marie Mark Marta Martin
Mary Mateo Max Maya Mei Mia Mila Milan Mina Mona Nadia Naomi Nasir Nick Nico Nina Noah Nora Oleg Olga Oliver Olivia
Omar Oscar Otto Pablo Paul Paula Pedro Peter Petra Philip Pia Priya Quentin Rahul Raul Ravi Rita Robert Rosa Ruth Ryan
Sam Samira Sara Sean Selma Sofia Sonja Stefan Susan Sven Tara Theo Thomas Tim Tina Tobias Tom Tomas Uma Ursula Vera
Victor Viola Walter Wanda Wei Wendy Willem Xenia Yara Yuki Yusuf Zara Zoe
""")

CITIES = (
    "New York", "Los Angeles", "San Francisco", "Hong Kong", "Cape Town", "Rio de Janeiro", "Tel Aviv", "San Diego",
    *_split("""
Amsterdam Ankara Athens Auckland Baghdad Bangkok Barcelona Basel Beijing Beirut Belgrade Berlin Bern Bogota Bombay
Boston Bremen Brussels Budapest Cairo Calgary Canberra Caracas Casablanca Chennai Chicago Cologne Copenhagen Dakar
Dallas Delhi Denver Detroit Dhaka Doha Dubai Dublin Edinburgh Florence Frankfurt Geneva Genoa Glasgow Graz Hamburg
Hanoi Havana Helsinki Houston Istanbul Jakarta Karachi Kathmandu Kiev Kingston Krakow Kyoto Lagos Lahore Leeds Leipzig
Lima Lisbon London Luxembourg Lyon Madrid Manila Marseille Melbourne Miami Milan Montreal Moscow Mumbai Munich Nairobi
Naples Nice Odessa Osaka Oslo Ottawa Oxford Palermo Paris Perth Porto Prague Quito Reykjavik Riga Rome Rotterdam
Salzburg Santiago Seattle Seoul Seville Shanghai Singapore Sofia Stockholm Stuttgart Sydney Taipei Tallinn Tokyo
Toronto Toulouse Trieste Tunis Turin Valencia Vancouver Venice Vienna Vilnius Warsaw Wellington Zagreb Zurich
"""),
)  # fmt: skip

WORDS = _split("""
acorn actor air album angle animal ant apple april arm arrow art autumn baby bacon bag ball balloon banana band bank
barn basket bath beach bean bear bed bee bell belt bench berry bicycle bird biscuit blanket board boat body bone book
boot bottle bowl box branch bread breakfast brick bridge broom brother bucket bus bush butter button cabin cable cake
camel camera candle candy canoe car card carpet carrot castle cat cave chain chair chalk cheese cherry chicken child
church circle city clay clock cloud clown coat coffee coin color computer cookie copper corn cotton cousin cow crab
crayon cream crown cup curtain dance daughter desert desk diamond dinner dish doctor dog doll dolphin donkey door
dragon drawer dream dress drum duck dust eagle ear earth east egg elbow elephant engine evening eye face factory fairy
family farm father feather fence field finger fire fish flag flame flower fly fog food foot forest fork fox friend
frog fruit garage garden gate ghost giant giraffe girl glass glove goat gold goose grandmother grape grass guitar hair
hammer hand harbor hat hedge heart hen hill history holiday honey horse hospital hotel house hunter ice iron island
jacket jam jar jelly jewel juice jungle kettle key kitchen kite kitten knee knife ladder lake lamp language lantern
leaf lemon letter library light lily lion lizard lobster lock lunch machine magnet map marble market mask meadow melon
memory message milk mill mirror money monkey moon morning mother mountain mouse mouth museum mushroom music nail neck
needle nest net night north nose notebook number nut oak ocean office oil onion orange orchard oven owl page paint
palace pan paper parrot party path peach peanut pear pearl pebble pen pencil penguin pepper piano picture pie pig
pillow pilot pine pipe pirate plane planet plant plate plum pocket poem pony pool potato present prince pumpkin puppy
purse puzzle queen question quilt rabbit radio rain rainbow raven ribbon rice ring river road robin robot rocket roof
room rooster root rope rose ruler sail salad salt sand sandwich scarf school scissors sea seal seed shadow shark sheep
shell ship shirt shoe shop shoulder silk silver sister skirt sky sled smoke snail snake snow soap sock sofa soldier
song soup spider spoon spring square squirrel stable stamp star station stone storm story strawberry street student
sugar summer sun swan sweater table tail teacher teapot tent thread throne thunder ticket tiger toast tomato tongue
tooth tower town toy train tree triangle truck trumpet turtle umbrella uncle valley vase vegetable village violin
voice wagon wall walnut water wave weather wheel whistle wind window wing winter wolf wood wool world worm yard yarn
year yellow zebra zipper server token model prompt stream cache kernel request python wonderful beautiful rhythm
necessary believe because through enough tomorrow yesterday different important language keyboard mississippi strength
""")

COLORS = _split("red green blue yellow black white orange purple pink brown grey silver golden turquoise violet")
JOBS = _split("""
baker teacher doctor nurse pilot farmer painter singer lawyer driver gardener plumber writer dentist cook tailor
fisherman carpenter librarian engineer programmer photographer mechanic waiter sailor judge dancer actor
""")
PETS = _split("cat dog rabbit parrot hamster turtle horse pony goldfish canary snake lizard donkey mouse goose duck")
FOODS = _split("""
apple banana cherry bread cheese rice soup pasta pizza salad cake honey butter milk coffee tea chocolate potato tomato
carrot onion mushroom melon plum grape lemon yogurt omelette pancake
""")
HOBBIES = _split("chess tennis football painting swimming reading singing dancing cooking hiking sailing skating knitting")
ROOMS = ("kitchen", "bathroom", "bedroom", "living room", "office", "garage", "hall", "cellar", "garden", "attic")
LANGUAGES = _split("""
English French German Spanish Italian Dutch Polish Turkish Greek Latin Japanese Chinese Korean Hindi Arabic Russian
Swedish Danish Finnish Portuguese Czech Hungarian
""")
CURRENCIES = _split("USD EUR GBP JPY CHF CAD AUD CNY INR SEK NOK DKK PLN BRL MXN KRW")

DAYS = _split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _split("January February March April May June July August September October November December")
MONTH_LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
NUMBER_WORDS = _split("zero one two three four five six seven eight nine ten eleven twelve")

PLACE_NOUNS = (
    "weather", "temperature", "time", "local time", "population", "humidity", "air quality", "wind speed", "forecast",
    "sunrise", "sunset", "traffic", "altitude", "elevation", "postal code", "zip code", "time zone", "area", "mayor",
    "rainfall", "snow depth", "water level", "tide", "noise level", "pollen count", "rent", "fuel price", "bus fare",
    "taxi fare", "exchange office", "hotel price", "bike count", "parking situation", "power usage", "tax rate",
    "unemployment rate", "birth rate", "dialing code", "crime rate", "event calendar", "museum list", "flight status",
    "train schedule", "ferry schedule", "beach report", "ski report", "moon phase", "uv index", "pressure",
    "visibility",
    "road condition", "school list", "hospital list", "pharmacy", "restaurant guide", "market day", "holiday list",
)  # fmt: skip
ITEM_NOUNS = (
    "price", "stock", "stock level", "rating", "weight", "size", "color", "calories", "discount", "availability",
    "delivery time", "shipping cost", "warranty", "recipe", "nutrition", "origin", "brand", "barcode", "review count",
    "supplier", "expiry date", "storage place", "order count", "sales", "tax", "packaging", "ingredient list",
    "vendor",
    "margin", "return rate", "shelf number", "unit cost", "minimum order", "sugar content", "fat content", "vitamins",
)  # fmt: skip
PERSON_NOUNS = (
    "phone number", "email", "address", "birthday", "office", "age", "salary", "department", "manager", "shift",
    "vacation days", "account balance", "order history", "membership", "calendar", "desk number", "employee id",
    "favorite color", "nickname", "job title", "locker number", "parking spot", "badge number", "team", "score",
    "grade", "ranking", "attendance", "appointment", "invoice", "subscription", "points", "credit limit",
    "blood type",
)  # fmt: skip
VERBS = _split("""
start stop open close check update delete create print archive export import reset restart scan sync upload download
rename move copy lock unlock share publish approve reject cancel order paint clean repair install remove inspect label
count measure mix polish register schedule test train translate validate wrap
""")
OBJECTS = _split("""
report file folder invoice ticket server backup printer camera robot engine pump valve door window gate lamp heater
fridge oven washer drone car truck boat package parcel letter document contract photo video playlist song album
account profile session meeting task project database table cluster job pipeline sensor alarm fence garden pool
elevator machine conveyor turbine boiler tank
""")
PARAMS = _split("""
name id title color size mode speed level count amount width height depth weight priority status label group owner
format volume duration delay limit version channel target source zone shelf batch port rate power angle pressure stage
""")
INTEGER_PARAMS = frozenset(
    _split("id size speed level count amount width height depth weight volume duration delay limit version channel batch port")
    + _split("rate power angle pressure")
)
CONDITIONS = _split("sunny cloudy rainy windy foggy stormy snowy clear dry humid warm cold mild hot icy")
STATUSES = _split("ok done sent created started stopped open closed pending ready confirmed saved queued booked delivered")
ERRORS = (
    "not found", "city not found", "timeout", "permission denied", "unknown name", "service unavailable",
    "invalid value",
    "no such item", "too many requests", "out of stock", "connection lost", "not allowed", "disk full", "no results",
)  # fmt: skip
TOPICS = (
    "quantum physics", "the world cup", "politics", "the stock market", "black holes", "the french revolution",
    "love",
    "climate change", "dinosaurs", "cooking pasta", "jazz", "the roman empire", "chess openings", "tax law",
    "football",
    "philosophy", "the meaning of life", "evolution", "machine learning", "medieval history", "the moon landing",
    "electric cars", "shakespeare", "photosynthesis", "gravity", "the human brain", "bitcoin", "poetry", "volcanoes",
    "the ocean", "world war two", "napoleon", "einstein", "mozart", "picasso", "vaccines", "rust", "javascript",
    "sql",
    "the stars", "dreams", "music theory", "gardening", "ancient egypt", "space travel", "religion", "economics",
)  # fmt: skip
COUNTRIES = (
    "Argentina", "Australia", "Austria", "Belgium", "Brazil", "Canada", "Chile", "China", "Denmark", "Egypt",
    "Finland",
    "France", "Germany", "Greece", "India", "Ireland", "Italy", "Japan", "Kenya", "Mexico", "Norway", "Peru",
    "Poland",
    "Portugal", "Russia", "Spain", "Sweden", "Switzerland", "Turkey",
)  # fmt: skip
CAPITALS = (
    "Buenos Aires", "Canberra", "Vienna", "Brussels", "Brasilia", "Ottawa", "Santiago", "Beijing", "Copenhagen",
    "Cairo",
    "Helsinki", "Paris", "Berlin", "Athens", "New Delhi", "Dublin", "Rome", "Tokyo", "Nairobi", "Mexico City", "Oslo",
    "Lima", "Warsaw", "Lisbon", "Moscow", "Madrid", "Stockholm", "Bern", "Ankara",
)  # fmt: skip

SAID = _split("""
about after afterwards again all alphabetical among and answer answers anything anybody apache api architecture are
arguments arrange array ascending asked author backwards bank base because before below big biggest birth boolean bot
brief budget built bye calculate call called calls came can cannot child client command compare compute context
continuously conversation convert correct could count create created current customer data date debug define deepseek
demo describe describes descending description difference digits divide does down each echo employee empty english
enough enum error euros every everything examine exists explain extract facts false fast favorite field find first
fixed follow following forget form format forward friendly from function functions future generates get getting given
glad goes going goodbye greatest greet happy have helpful help here history honest how human hundred identity if
important incorrect index inference input integer internet into invented item items join json keep keys kind know
known large largest last later layers learn learned left length less letters like limit line list little llama local
location long longer look loses lost lot low made many markers match matter maximum may mean means measure meeting
members middle mind minimum minus minute minutes missing months more most multiply must named names never new next
nice none nothing now null number numbers object off often once one only open openai operation order other out output
outside over own page pair parameters parts people percent permission please plus point possible predict print product
program property properties question questions quick quotient read ready really recommend remember remind repeat
report request requests required reserve respond result results return returns reverse right run same save say says
script seconds secret send sent sentence serve server set several should show shows signatures simple since size
skills small smaller smallest smart solve some somebody something sort sounds source speak spell spelled start started
starts state status step steps stop stopped store streams string strings subtract subtraction sum support surname
switch system take talk talking target team tell term test text thank thanks that the their them then there these they
thing think this those thousand time timer times title today together told tokens too tool tools top total train
trained transformer translate true try turbine turn two type types uncertain under unit units until update use used
user using valid value values various version very wait want was way week weights welcome well were what when where
which while who whole whose why will with within without wonder word words work works world write wrong year years yes
you your zero
""")
PARTS = tuple(
    sorted(
        {
            part.lower()
            for word in (*WORDS, *SAID, *NAMES, *CITIES, *VERBS, *OBJECTS, *PARAMS, *FOODS, *JOBS, *PETS)
            for part in word.split()
        }
    )
)
